"""Where a stream's events get their numbers and are kept until they are read.

- `base`: the contract of a log.
- `memory`: the log of one process.
"""
