"""Bodies that once held the event loop for seconds, against a real server: the right answer soon, and the loop free.

`tests/support/hostile_bodies` has them all and measures them one by one; here are some of each kind.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Keyed
from tests.support.hostile_bodies import measure
from tests.support.livez_probe import LivezProbe
from tests.support.server import ASK, CHAT, MODEL, Raw, Server, long_chat, poll, request_bytes

SOME = [
    "chat, 8,000 empty messages",
    "chat, 4,000 empty parts",
    "responses, 12,000 empty items",
    "responses, 2,000 items of no type",
    "messages, 4,000 empty parts",
    "count_tokens, 12,000 empty messages",
    "tokenize, 12,000 empty messages",
    "invocations, 4,000 empty messages",
    "chat, model name of 1 MB",
    "responses, model name of 1 MB",
    "chat, stop_token_ids of a million",
    "chat, 300,000 messages",
    "chat, 16 MiB of lists",
    "responses, 16 MiB of empty items",
    "detokenize, 16 MiB of strings",
    "not JSON, 16 MiB of digits",
    "responses, 2,000 items",
]
# The machine of the tests has two cores for the server, its engine, the client and the probe.
HELD_MS = 500.0


@pytest.fixture(scope="module")
def livez(server: Server) -> Iterator[LivezProbe]:
    with LivezProbe(server.port) as one:
        yield one


@pytest.mark.parametrize("name", SOME)
def test_a_hostile_body_is_answered_soon_and_delays_no_other_client(
    server: Server, livez: LivezProbe, name: str
) -> None:
    found = measure(server.http, livez, name)

    assert found["status"] == found["right"], found
    assert found["seconds"] < 10
    assert found["answer_bytes"] < 5000
    assert found["livez_max_ms"] < HELD_MS


def test_no_refusal_logs_a_stack_or_sends_a_librarys_message(server: Server) -> None:
    wrong = [
        ("/v1/messages", {"max_tokens": 10**6, "messages": ASK}),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]}),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": [{"type": "x"}]}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        (CHAT, {"messages": ASK, "tools": [7]}),
        ("/tokenize", {"messages": [7]}),
        ("/invocations", {"nothing": 1}),
    ]
    for path, body in wrong:
        response = server.post(path, model=MODEL, **body)
        text = response.text

        assert response.status_code == 400, (path, text)
        for word in ("pydantic", "validation error", "Traceback", "instance of", "Request'", "ValidationError"):
            assert word not in text, (path, text)
    assert "Traceback" not in server.stderr()


def test_calls_without_engine_work_are_answered_while_all_slots_and_places_are_taken(keyed: Keyed) -> None:
    server, headers = keyed.server, keyed.headers()
    streams = [Raw(server.port, request_bytes(long_chat(), headers=headers)) for _ in range(4)]
    try:
        poll("all are taken", lambda: server.sample("sluice_requests_waiting") == 2, 10)
        refused = server.post(model=MODEL, messages=ASK, max_tokens=1, headers=headers)
        counted = server.post("/v1/messages/count_tokens", model=MODEL, messages=ASK, headers=headers)
        cut = server.post("/tokenize", model=MODEL, messages=ASK, headers=headers)
        cancelled = server.post("/v1/responses/resp_unknown/cancel", headers=headers)

        assert refused.status_code == 503
        assert (counted.status_code, cut.status_code, cancelled.status_code) == (200, 200, 404)
        assert max(one.elapsed.total_seconds() for one in (counted, cut, cancelled)) < 2
    finally:
        for stream in streams:
            stream.rst()
    poll("the server is idle", lambda: server.sample("sluice_streams_active") == 0, 10)
