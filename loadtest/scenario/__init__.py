"""The configuration of a run, and the requests that it generates. Pure."""
