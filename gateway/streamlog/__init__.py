"""Where a stream's pieces live until they are read.

- `base`: what a log must answer.
- `memory`: the log of one process.
"""
