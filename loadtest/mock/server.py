"""The process: a socket, a loop, an end on SIGTERM or SIGINT, and then the truth."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
from pathlib import Path

from loadtest.mock.app import App
from loadtest.mock.ground_truth import Truth
from loadtest.mock.plan import Plan

__all__ = ["serve"]

# A burst of a thousand clients in one instant, and what comes during a freeze, must find room.
BACKLOG = 4096


async def serve(plan: Plan, host: str, port: int, truth: Path | None) -> None:
    """Serve until told to end; say where on stdout, and at the end how late it was. Raises OSError if it cannot
    listen."""
    loop = asyncio.get_running_loop()
    app = App(plan, loop)
    server = await loop.create_server(app.connection, host, port, backlog=BACKLOG)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    print(f"listening on http://{host}:{server.sockets[0].getsockname()[1]}", flush=True)
    # A collection of the records of a long run would be seen in the times.
    gc.collect()
    gc.disable()
    await told.wait()
    server.close()
    app.close()
    mock = app.lateness.told()
    if truth is not None:
        Truth.write(truth, app.records, mock)
    print(json.dumps({"requests": len(app.records), **mock}), flush=True)
