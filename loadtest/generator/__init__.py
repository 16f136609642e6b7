"""One worker's part of a run, and the generator's own health."""
