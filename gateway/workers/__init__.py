"""Several front-end processes on one engine. A server of one process knows nothing of this room.

Both sides:

- `messages`: what they say to each other, as a table; `channel`: the line over which they do.

The house, which is the parent process:

- `house`: sockets, signals, drain, exit code.
- `roster`: a worker as the house sees it.
- `permits`: the one gate of all workers.
- `engines`: the engine processes, and what the workers are told of them.

A worker:

- `worker`: the process.
- `seat`: what it has where a server of one process has the whole thing.
- `tenancy`: where the engine of the day is.
- `gate`: asks the house for seats.
- `ids`: ids that tell whose a stream is.
- `siblings`: HTTP to another worker; `relay`: sends it the requests that are about its streams.
- `numbers`: what workers tell each other; `exposition`: their metrics as one.
"""
