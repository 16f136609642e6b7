"""The numbers of a run, from one request to the result document. Pure."""
