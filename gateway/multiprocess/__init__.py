"""Several worker processes on one engine. A server of one process uses nothing of this package.

- `messages`: the messages between the parent process and its workers; `channel`: the socket that carries them.
- `stream_ids`: ids from which the worker that has the stream can be told.
"""
