"""The parts of a transport that do not depend on the kind of connection.

- `api_keys`: the file of API keys.
- `request_options`: the options that a client's headers ask for.
- `accounting`: the statistics of a request, and at its end the metrics and the log line.
- `delivery`: one stream over one connection: keep-alives, stalled clients, the time of the first token.
- `timers`: one timer that finds silent and stuck connections.
- `listeners`: the listening sockets; `tls`: their certificates.
"""
