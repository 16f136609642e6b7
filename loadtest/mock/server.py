"""The process of the mock: listens, ends on SIGTERM or SIGINT, and then writes the ground truth."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
from pathlib import Path

from loadtest.mock.app import App
from loadtest.mock.ground_truth import GroundTruth
from loadtest.mock.plan import MockPlan

# Room for a burst of a thousand clients in one instant, and for the connections during a freeze.
BACKLOG = 4096


async def serve(plan: MockPlan, host: str, port: int, truth: Path | None) -> None:
    """Serve until a signal; print the URL first, and the lateness at the end. Raises OSError if it cannot listen."""
    loop = asyncio.get_running_loop()
    app = App(plan, loop)
    server = await loop.create_server(app.make_connection, host, port, backlog=BACKLOG)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    print(f"listening on http://{host}:{server.sockets[0].getsockname()[1]}", flush=True)
    # A garbage collection over the records of a long run would be visible in the times.
    gc.collect()
    gc.disable()
    await stopping.wait()
    server.close()
    app.close()
    mock = app.lateness.to_dict()
    if truth is not None:
        GroundTruth.write(truth, app.records, mock)
    print(json.dumps({"requests": len(app.records), **mock}), flush=True)
