"""The checker process, as the gateway sees it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from gateway.engine.vllm.grammars import fork_server
from gateway.engine.vllm.grammars.check_queue import OnDocument

# numpy's library would start a thread for every core, but a process with threads must not fork.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class CheckerProcess:
    """A running checker process, to be used from one event loop."""

    def __init__(self, process: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._writer = writer
        self._reading: asyncio.Task[None] | None = None
        self.pid = process.pid

    @classmethod
    async def start(cls, config: Mapping[str, Any], on_document: OnDocument) -> CheckerProcess:
        """Start the process; returns when it is ready. It ends by itself when this process does."""
        ours, theirs = socket.socketpair()
        with theirs:
            # A fresh program, not a fork: this process has threads and most of the machine's memory. In a group of its
            # own, because Ctrl-C goes to all of the terminal's group, and the drain still has requests to check.
            process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-m", fork_server.__name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                process_group=0,
                env={**os.environ, **_ENVIRONMENT},
            )
        ours.setblocking(False)
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
            self = cls(process, writer)
            self.send(config)
            # The first document reports that the process is ready.
            await reader.readuntil()
        except BaseException:
            ours.close()
            process.kill()
            await asyncio.to_thread(process.wait)
            raise
        self._reading = asyncio.get_running_loop().create_task(self._read_all(reader, on_document))
        return self

    def send(self, document: Mapping[str, Any]) -> None:
        self._writer.write(fork_server.pack(document))

    def close(self) -> None:
        """End the process and all running checks."""
        if self._reading is not None:
            self._reading.cancel()
        self._writer.close()
        self._process.kill()
        self._process.wait()

    async def _read_all(self, reader: asyncio.StreamReader, on_document: OnDocument) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                on_document(json.loads(await reader.readuntil()))
        self._writer.close()
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        on_document(None)
