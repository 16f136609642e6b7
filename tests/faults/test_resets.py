"""Readers of vLLM's own endpoints who stop, and then reset their connections all at once."""

from __future__ import annotations

import time
from typing import Any

from tests.faults.conftest import Shared
from tests.support.server import MODEL, Raw, poll, request_bytes

QUESTION = [{"role": "user", "content": "Hello"}]
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages", {"messages": QUESTION, "max_tokens": 20000}),
    ("/v1/responses", {"input": "Hello", "max_output_tokens": 20000}),
]


def test_resets_of_readers_that_have_stopped_free_their_slots(synthetic: Shared, full: bool, figure: Any) -> None:
    """So many streams that formatting a step's tokens takes longer than the step."""
    server, me = synthetic.server, synthetic.me
    streams, rounds = 120, 8 if full else 1
    slowest_s = 0.0
    for number in range(rounds):
        readers = []
        for index in range(streams):
            path, body = KINDS[index % 2]
            payload = request_bytes({"model": MODEL, "temperature": 0, "stream": True, **body}, path, me)
            readers.append(Raw(server.port, payload))
        poll("all run", lambda: server.sample("vllm:num_requests_running") == streams, 20)
        # In some rounds their buffers are full, in others they have only just begun.
        time.sleep((1.5, 0.2, 4.0, 3.0)[number % 4])
        for reader in readers:
            reader.rst()
        began_s = time.monotonic()
        server.wait_idle()
        slowest_s = max(slowest_s, time.monotonic() - began_s)
    asked_s = time.monotonic()
    answer = server.post("/v1/completions", headers=me, model=MODEL, prompt="x", max_tokens=2)
    figure("resets", f"{rounds * streams} resets: slots free within", f"{slowest_s:.1f} s", "5 s")

    assert answer.status_code == 200
    assert time.monotonic() - asked_s < 5
    assert slowest_s < 5
