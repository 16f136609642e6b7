"""The parent process.

- `process`: sockets, signals, drain, exit code.
- `worker_handle`: one worker, seen from the parent.
- `permit_server`: the one gate of all workers.
- `engine_host`: the engine processes, and the messages about them to the workers.
"""
