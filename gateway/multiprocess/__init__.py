"""Several worker processes on one engine, and their parent. A server of one process uses nothing of this package.

- `messages`: the messages between the parent process and its workers; `channel`: the sockets that carry them.
- `stream_ids`: stream ids that name the worker which has the stream.
"""
