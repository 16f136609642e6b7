"""A TCP proxy that slices, delays, stalls and cuts the server's answers, with FIN or RST.

It runs in a thread of its own, so that blocking clients can talk through it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Chaos:
    """What happens to one connection's answer. Bytes are counted from the end of its first head.

    `slice_bytes`: how many are written at once (0: as they come), and `delay_s` before each write. After `cut_after`
    bytes the client's connection ends, by RST if `by_rst`. After `stall_after` bytes nothing more is passed on.
    """

    slice_bytes: int = 0
    delay_s: float = 0.0
    cut_after: int | None = None
    by_rst: bool = False
    stall_after: int | None = None


class ChaosProxy:
    """Listens on `port` and passes everything on to `target`, the port of a server on this machine.

    `chaos` holds for connections that begin from now on; `plan` goes first, one entry for one connection.
    """

    def __init__(self, target: int, chaos: Chaos | None = None) -> None:
        self.chaos = chaos or Chaos()
        self.plan: list[Chaos] = []
        self.connections = 0
        self.cuts = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._pass, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Closed transports call their protocols in the loop's next turns.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        chaos = self.plan.pop(0) if self.plan else self.chaos
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        to_server: asyncio.StreamWriter | None = None
        asking: asyncio.Task[None] | None = None
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
            asking = asyncio.get_running_loop().create_task(_copy(reader, to_server))
            answering = asyncio.get_running_loop().create_task(self._spoil(from_server, writer, chaos))
            # The end of either connection ends the other.
            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            if asking is not None:
                asking.cancel()
            for one in (writer, to_server):
                if one is not None:
                    one.close()
                    with suppress(OSError, asyncio.CancelledError):
                        await one.wait_closed()

    async def _spoil(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chaos: Chaos) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(HEAD_END)
            passed = -len(head)
            data = head
            while data:
                for part in _slices(data, chaos.slice_bytes):
                    allowed = part
                    for limit in (chaos.stall_after, chaos.cut_after):
                        if limit is not None and passed + len(part) >= limit:
                            allowed = allowed[: max(0, limit - passed)]
                    if chaos.delay_s:
                        await asyncio.sleep(chaos.delay_s)
                    writer.write(allowed)
                    await writer.drain()
                    passed += len(allowed)
                    if passed == chaos.cut_after:
                        self._cut(writer, chaos.by_rst)
                        return
                    if passed == chaos.stall_after:
                        await asyncio.Event().wait()
                data = await reader.read(65536)

    def _cut(self, writer: asyncio.StreamWriter, by_rst: bool) -> None:
        self.cuts += 1
        if by_rst:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


def _slices(data: bytes, size: int) -> list[bytes]:
    return [data] if size == 0 else [data[start : start + size] for start in range(0, len(data), size)]


__all__ = ["Chaos", "ChaosProxy"]
