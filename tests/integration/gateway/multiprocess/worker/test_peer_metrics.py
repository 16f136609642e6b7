from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from gateway.errors import Overloaded
from gateway.multiprocess.worker.metrics_merge import MetricsPage
from gateway.multiprocess.worker.peer_metrics import PeerApp, collect_metrics
from tests.support.asgi import Client
from tests.support.scripted_peer import ScriptedPeer, local_app
from tests.support.time import in_real_time


@in_real_time
async def test_a_worker_serves_its_metrics_and_its_request_ids_to_the_others() -> None:
    page = MetricsPage("# TYPE a counter\na 1.0\n", {"0": 5.0}, True)
    app = PeerApp(local_app, lambda: page, lambda name: name == "resp_1")
    served = await Client(app, "GET", "/metrics").finish()

    assert served.body == page.text.encode()
    assert orjson.loads(served.headers["x-sluice-state"]) == {"stats_received_s": {"0": 5.0}, "has_requests": True}
    assert (await Client(app, "GET", "/holds/resp_1").finish()).status == 200
    assert (await Client(app, "GET", "/holds/resp_2").finish()).status == 404
    assert (await Client(app, "GET", "/v1/streams/x").finish()).body == b"here"


@in_real_time
async def test_the_pages_of_all_workers_become_one() -> None:
    state = b'{"stats_received_s":{},"has_requests":false}'
    body = b"# TYPE a counter\na 2.0\n"
    head = b"HTTP/1.1 200 OK\r\nx-sluice-state: " + state + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with ScriptedPeer(head + body) as peer:
        made = await collect_metrics(lambda: MetricsPage("# TYPE a counter\na 1.0\n"), {1: peer.path})

    assert made == b"# TYPE a counter\na 3.0\n"


@in_real_time
async def test_without_one_of_the_workers_there_is_no_page() -> None:
    """A sum without its part would look like counters that have been reset."""

    async def script(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx-sluice-state: {}\r\ncontent-length: 9\r\n\r\nshort")
        writer.write_eof()

    async with ScriptedPeer(script) as peer:
        for path in (peer.path, Path("/nowhere")):
            with pytest.raises(Overloaded, match="Worker 1"):
                await collect_metrics(lambda: MetricsPage(""), {1: path})
