"""When to try again, with what, and when not: over a scripted inner transport, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from gateway.client import ResumingTransport
from tests.support.http_callers import STREAMING, Caller, Waits
from tests.support.resumption_server import EVENTS, RESUMABLE, URL, Body, Peer, broken, refusing, streaming


@pytest.mark.parametrize("status", [204, 302, 400, 401, 403, 404, 410])
def test_a_final_status_raises_the_original_error_at_once(caller: Caller, waits: Waits, status: int) -> None:
    error = broken()
    peer = Peer(streaming(EVENTS[0], EVENTS[1], error), refusing(status))
    with caller(waits.transport(peer.inner)) as client:
        received = client.ask(URL)

    assert received.error is error
    assert received.body == EVENTS[0] + EVENTS[1]
    assert received.notes == [f"stream chatcmpl-1 was not resumed after event 2: the server answered {status}"]
    assert len(peer.requests) == 2


@pytest.mark.parametrize("change", [{"Content-Type": "text/html"}, {"Content-Encoding": "gzip"}])
def test_a_response_that_is_no_event_stream_is_final(caller: Caller, waits: Waits, change: dict[str, str]) -> None:
    error = broken()
    peer = Peer(streaming(EVENTS[0], error), streaming(b"<html>", **change))
    with caller(waits.transport(peer.inner)) as client:
        assert client.ask(URL).error is error


def test_a_clean_end_without_done_is_an_error(caller: Caller, waits: Waits) -> None:
    peer = Peer(streaming(EVENTS[0]), refusing(404))
    with caller(waits.transport(peer.inner)) as client:
        received = client.ask(URL)

    assert isinstance(received.error, httpx.RemoteProtocolError)
    assert "[DONE]" in str(received.error)


def test_a_missing_event_is_an_error(caller: Caller, waits: Waits) -> None:
    peer = Peer(streaming(EVENTS[0], broken()), streaming(EVENTS[2]))
    with caller(waits.transport(peer.inner)) as client:
        received = client.ask(URL)

    assert received.body == EVENTS[0]
    assert isinstance(received.error, httpx.RemoteProtocolError)
    assert "event 3 came after event 1" in str(received.error)
    assert len(peer.requests) == 2


def test_a_connection_that_breaks_after_done_is_no_error(caller: Caller, waits: Waits) -> None:
    peer = Peer(streaming(*EVENTS, broken()))
    with caller(waits.transport(peer.inner)) as client:
        received = client.ask(URL)

    assert (received.body, received.error) == (b"".join(EVENTS), None)
    assert len(peer.requests) == 1


def test_a_response_closed_while_it_is_being_resumed_leaves_no_connection_behind(waits: Waits) -> None:
    """Another thread closes it between the request and its answer."""
    late = Body(*EVENTS)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return streaming(EVENTS[0], broken())
        held.close()
        return httpx.Response(200, headers=RESUMABLE, stream=late)

    with httpx.Client(transport=waits.transport(httpx.MockTransport(answer))) as client:
        held = client.send(client.build_request("POST", URL, json=STREAMING), stream=True)
        with pytest.raises(httpx.ReadError):
            held.read()

    assert late.is_closed


def test_a_response_closed_by_another_task_while_it_is_being_resumed_leaves_no_connection_behind(waits: Waits) -> None:
    late = Body(*EVENTS)

    async def main() -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            if request.method == "POST":
                return streaming(EVENTS[0], broken())
            await held.aclose()
            return httpx.Response(200, headers=RESUMABLE, stream=late)

        async with httpx.AsyncClient(transport=waits.transport(httpx.MockTransport(answer))) as client:
            held = await client.send(client.build_request("POST", URL, json=STREAMING), stream=True)
            with pytest.raises(httpx.ReadError):
                await held.aread()

    asyncio.run(main())

    assert late.is_closed


def test_a_read_timeout_is_a_broken_connection_too(caller: Caller, waits: Waits) -> None:
    peer = Peer(streaming(EVENTS[0], httpx.ReadTimeout("silence")), httpx.ReadTimeout("more"), streaming(*EVENTS[1:]))
    with caller(waits.transport(peer.inner)) as client:
        assert client.ask(URL).body == b"".join(EVENTS)


def test_every_broken_connection_is_closed(caller: Caller, waits: Waits) -> None:
    bodies = [Body(EVENTS[0], broken()), Body(EVENTS[1]), Body(EVENTS[2])]
    peer = Peer(*(httpx.Response(200, headers=RESUMABLE, stream=body) for body in bodies))
    with caller(waits.transport(peer.inner)) as client:
        client.ask(URL)

    assert all(body.is_closed for body in bodies)


def test_the_resuming_request_repeats_credentials_and_drops_headers_of_the_post(caller: Caller, waits: Waits) -> None:
    peer = Peer(streaming(EVENTS[0], broken()), streaming(*EVENTS[1:]))
    sent = {
        "Authorization": "Bearer me",
        "Cookie": "lb=3",
        "X-Request-Timeout": "9",
        "Idempotency-Key": "k",
        "User-Agent": "app",
    }
    with caller(waits.transport(peer.inner), timeout_s=3.0) as client:
        client.ask("http://sluice/behind/a%20proxy/v1/completions?tenant=7", headers=sent)
    first, second = peer.requests

    assert second.method == "GET"
    assert str(second.url) == "http://sluice/behind/a%20proxy/v1/streams/chatcmpl-1?tenant=7"
    assert second.content == b""
    assert dict(second.headers) == {
        "host": "sluice",
        "connection": "keep-alive",
        "authorization": "Bearer me",
        "cookie": "lb=3",
        "user-agent": "app",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "last-event-id": "1",
    }
    assert (
        second.extensions["timeout"]
        == first.extensions["timeout"]
        == dict.fromkeys(("connect", "read", "write", "pool"), 3.0)
    )


def test_a_stream_cut_before_its_first_event_is_requested_from_the_beginning(caller: Caller, waits: Waits) -> None:
    peer = Peer(streaming(EVENTS[0][:5], broken()), streaming(*EVENTS))
    with caller(waits.transport(peer.inner)) as client:
        assert client.ask(URL).body == b"".join(EVENTS)

    assert "last-event-id" not in peer.requests[1].headers


def test_an_id_cannot_lead_to_another_path(waits: Waits) -> None:
    peer = Peer(streaming(broken(), **{"X-Stream-Id": "../models?x#y"}), streaming(*EVENTS))
    with httpx.Client(transport=waits.transport(peer.inner)) as client:
        client.post(URL, json=STREAMING)

    assert peer.requests[1].url.raw_path == b"/v1/streams/..%2Fmodels%3Fx%23y"


def test_a_target_extension_of_the_post_is_not_used_to_resume(waits: Waits) -> None:
    peer = Peer(streaming(broken()), streaming(*EVENTS))
    with httpx.Client(transport=waits.transport(peer.inner)) as client:
        client.post(URL, json=STREAMING, extensions={"target": b"/elsewhere"})

    assert "target" in peer.requests[0].extensions
    assert "target" not in peer.requests[1].extensions


def test_streamed_completions_are_requested_as_resumable_and_uncompressed(caller: Caller, waits: Waits) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        peer = Peer(streaming(*EVENTS))
        with caller(waits.transport(peer.inner, grace_s=90.0)) as client:
            client.ask(f"http://sluice{path}")

        assert peer.requests[0].headers["X-Stream-Resumable"] == "90"
        assert peer.requests[0].headers["Accept-Encoding"] == "identity"


def test_the_callers_own_header_has_precedence(caller: Caller, waits: Waits) -> None:
    peer = Peer(streaming(*EVENTS))
    with caller(waits.transport(peer.inner)) as client:
        client.ask(URL, headers={"X-Stream-Resumable": "5"})

    assert peer.requests[0].headers.get_list("X-Stream-Resumable") == ["5"]


def test_the_request_that_the_caller_holds_is_not_changed(waits: Waits) -> None:
    peer = Peer(streaming(*EVENTS))
    with httpx.Client(transport=waits.transport(peer.inner)) as client:
        request = client.build_request("POST", URL, json=STREAMING)
        before = request.headers.copy()
        client.send(request)

        assert request.headers == before


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/chat/completions", {"json": {"stream": False}}),
        ("/v1/chat/completions", {"json": {"model": "m"}}),
        ("/v1/chat/completions", {"json": ["stream"]}),
        ("/v1/chat/completions", {"content": b"{not json"}),
        ("/v1/chat/completions", {"content": b"\xff\xfe\xff"}),
        ("/v1/responses", {"json": {"stream": True}}),
        ("/v1/chat/completions", {"files": {"file": b'{"stream": true}'}}),
    ],
)
def test_every_other_request_passes_unchanged(waits: Waits, path: str, options: dict[str, Any]) -> None:
    peer = Peer(httpx.Response(200, headers=RESUMABLE, stream=Body(b"as", b" it is")))
    with httpx.Client(transport=waits.transport(peer.inner)) as client:
        assert client.post(f"http://sluice{path}", **options).content == b"as it is"

    assert "x-stream-resumable" not in peer.requests[0].headers
    assert peer.requests[0].headers["accept-encoding"] != "identity"


def test_a_request_body_that_is_not_in_memory_is_not_read(waits: Waits) -> None:
    """It can be read once, and the server has to."""
    peer = Peer(streaming(b"as it is"))
    with httpx.Client(transport=waits.transport(peer.inner)) as client:
        client.post(URL, content=iter([b'{"stream"', b": true}"]))

    assert peer.requests[0].content == b'{"stream": true}'
    assert "x-stream-resumable" not in peer.requests[0].headers


@pytest.mark.parametrize(
    "lacks",
    [
        {"X-Stream-Resumable": None},
        {"X-Stream-Id": None},
        {"Content-Type": "application/json"},
        {"Content-Encoding": "x-private"},
    ],
)
def test_the_response_of_a_server_without_the_feature_passes_byte_for_byte(
    caller: Caller, waits: Waits, lacks: dict[str, str | None]
) -> None:
    headers = {name: value for name, value in {**RESUMABLE, **lacks}.items() if value is not None}
    parts = [b": keep-alive\n\n", b"data: {}\n\nda", b"ta: half"]
    error = broken()
    peer = Peer(httpx.Response(200, headers=headers, stream=Body(*parts, error)))
    with caller(waits.transport(peer.inner)) as client:
        received = client.ask(URL)

    assert received.body == b"".join(parts)
    assert received.error is error
    assert len(peer.requests) == 1


def test_an_error_status_is_passed_on(caller: Caller, waits: Waits) -> None:
    peer = Peer(httpx.Response(503, headers=RESUMABLE, stream=Body(b"{}")))
    with caller(waits.transport(peer.inner)) as client:
        received = client.ask(URL)

    assert received.response is not None
    assert (received.response.status_code, received.body, len(peer.requests)) == (503, b"{}", 1)


def test_headers_and_extensions_are_those_of_the_first_response(caller: Caller, waits: Waits) -> None:
    first = streaming(EVENTS[0], broken(), **{"X-Request-Id": "first"})
    first.extensions["http_version"] = b"HTTP/1.9"
    peer = Peer(first, streaming(*EVENTS[1:], **{"X-Request-Id": "second"}))
    with caller(waits.transport(peer.inner)) as client:
        received = client.ask(URL)

    assert received.response is not None
    assert received.response.headers["X-Request-Id"] == "first"
    assert received.response.extensions["http_version"] == b"HTTP/1.9"


def test_a_redirected_request_is_resumed_at_its_target(waits: Waits) -> None:
    peer = Peer(
        httpx.Response(307, headers={"Location": "http://other/v1/chat/completions"}),
        streaming(EVENTS[0], broken()),
        streaming(*EVENTS[1:]),
    )
    with httpx.Client(transport=waits.transport(peer.inner), follow_redirects=True) as client:
        assert client.post(URL, json=STREAMING).content == b"".join(EVENTS)

    assert str(peer.requests[2].url) == "http://other/v1/streams/chatcmpl-1"


def test_an_unreadable_grace_counts_as_the_requested_one(waits: Waits) -> None:
    peer = Peer(streaming(broken(), **{"X-Stream-Resumable": "yes"}), httpx.ConnectError("down"))
    with httpx.Client(transport=waits.transport(peer.inner, grace_s=12.0)) as client, pytest.raises(httpx.ReadError):
        client.post(URL, json=STREAMING)

    assert sum(waits.pauses_s) == pytest.approx(12)


@pytest.mark.parametrize("grace_s", [0, -1, float("nan"), float("inf")])
def test_a_grace_that_is_not_positive_is_refused(grace_s: float) -> None:
    with pytest.raises(ValueError, match="grace_s"):
        ResumingTransport(grace_s=grace_s)
