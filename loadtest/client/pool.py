"""Keep-alive connections that wait for their next request."""

from __future__ import annotations

from time import perf_counter_ns

from loadtest.client.connection import Address, Connection, ReadPace

# uvicorn and Node close connections after 5 s of silence; sending into a connection that is just being closed would
# look like an error of the server.
_IDLE_NS = 3_000_000_000
_UNLIMITED = ReadPace()


class ConnectionPool:
    """For one worker. The connection used last is used next, so that few stay open."""

    def __init__(self, address: Address, connect_s: float) -> None:
        self.address = address
        self._connect_s = connect_s
        self._idle: list[Connection] = []

    def acquire(self, pace: ReadPace = _UNLIMITED) -> Connection:
        """An idle connection; a new one if there is none, or if `pace` is a special one. Raises ConnectionFailed."""
        if pace == _UNLIMITED:
            now_ns = perf_counter_ns()
            while self._idle:
                connection = self._idle.pop()
                if now_ns - connection.idle_since_ns < _IDLE_NS and connection.is_alive():
                    return connection
                connection.close()
        return Connection(self.address, pace, self._connect_s)

    def release(self, connection: Connection) -> None:
        """Keep the connection if it can be used again, else close it."""
        if connection.is_reusable:
            connection.idle_since_ns = perf_counter_ns()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
