"""Against a real server on the loopback that cuts connections; pauses are virtual."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import httpx
import pytest

from gateway.client import ResumingTransport
from tests.support.cutting_server import STREAM_ID, Cut, CuttingServer, How, Refuse, numbered, with_comments
from tests.support.http_callers import STREAMING, AsyncCaller, Caller, SyncCaller, Waits

EVENTS = numbered([b'{"t":"\xc3\xa9"}', b'{"t":"\xf0\x9f\x98\x80"}'])
EXACT = b"".join(EVENTS)
# A comment stands before each event, so cuts fall into comment lines, id lines, and characters.
WHOLE = len(with_comments(EVENTS))
RESUME = f"GET /v1/streams/{STREAM_ID}"
POST = "POST /v1/chat/completions"


@pytest.fixture
def server() -> Iterator[CuttingServer]:
    with CuttingServer(EVENTS) as made:
        yield made


@pytest.mark.parametrize("how", [How.FIN, How.RST, How.TIDY])
def test_a_cut_at_any_byte_is_not_noticed(server: CuttingServer, caller: Caller, waits: Waits, how: How) -> None:
    with caller(waits.transport(caller.inner())) as client:
        for cut in range(WHOLE + 1):
            server.requests.clear()
            server.plan = [Cut(cut, how)]
            received = client.ask(f"{server.url}/chat/completions")

            assert (received.body, received.error) == (EXACT, None), cut
            assert server.asked == ([POST] if cut == WHOLE else [POST, RESUME]), cut


def test_cuts_of_resumed_connections_are_not_noticed_either(
    server: CuttingServer, caller: Caller, waits: Waits
) -> None:
    with caller(waits.transport(caller.inner())) as client:
        for cut in range(0, WHOLE, 3):
            server.plan = [Cut(cut, How.RST), Cut(cut, How.FIN), Cut(7, How.TIDY), Cut(cut // 2, How.FIN)]
            received = client.ask(f"{server.url}/chat/completions")

            assert (received.body, received.error) == (EXACT, None), cut


def test_each_connection_is_asked_for_what_is_missing_with_the_callers_key(
    server: CuttingServer, caller: Caller, waits: Waits
) -> None:
    server.plan = [Cut(len(with_comments(EVENTS[:1])) + 20), Cut(len(with_comments(EVENTS[1:2])))]
    with caller(waits.transport(caller.inner())) as client:
        received = client.ask(f"{server.url}/chat/completions", headers={"Authorization": "Bearer me"})

    assert received.body == EXACT
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, "1", "2"]
    assert [request.headers["authorization"] for request in server.requests] == ["Bearer me"] * 3
    assert [request.headers["accept-encoding"] for request in server.requests] == ["identity"] * 3


def test_a_server_that_is_down_for_a_while_is_waited_for(server: CuttingServer, caller: Caller, waits: Waits) -> None:
    def back() -> None:
        if len(waits.pauses_s) == 4:
            server.up()

    waits.then = back
    server.plan = [Cut(60, down=True)]
    with caller(waits.transport(caller.inner())) as client:
        received = client.ask(f"{server.url}/chat/completions")

    assert (received.body, received.error) == (EXACT, None)
    assert waits.pauses_s == [0.25, 0.5, 1, 2]


def test_a_server_that_stays_down_is_given_up_with_the_original_error(
    server: CuttingServer, caller: Caller, waits: Waits
) -> None:
    server.plan = [Cut(WHOLE - 1, down=True)]
    with caller(waits.transport(caller.inner())) as client:
        received = client.ask(f"{server.url}/chat/completions")

    assert isinstance(received.error, httpx.RemoteProtocolError)
    assert received.body == b"".join(EVENTS[:-1])
    assert sum(waits.pauses_s) == pytest.approx(30)


def test_a_busy_server_is_asked_again_after_its_retry_after(
    server: CuttingServer, caller: Caller, waits: Waits
) -> None:
    server.plan = [Cut(60), Refuse(503, {"Retry-After": "3"}), Refuse(429, {"Retry-After": "2"})]
    with caller(waits.transport(caller.inner(), jitter=lambda: 0.0)) as client:
        received = client.ask(f"{server.url}/chat/completions")

    assert received.body == EXACT
    assert waits.pauses_s == [0, 3, 2]
    assert server.asked == [POST, RESUME, RESUME, RESUME]


@pytest.mark.parametrize("status", [204, 401, 404, 410])
def test_a_stream_that_is_gone_ends_in_the_original_error(
    server: CuttingServer, caller: Caller, waits: Waits, status: int
) -> None:
    server.plan = [Cut(60, How.RST), Refuse(status)]
    with caller(waits.transport(caller.inner())) as client:
        received = client.ask(f"{server.url}/chat/completions")

    assert isinstance(received.error, httpx.ReadError)
    assert f"the server answered {status}" in received.notes[0]
    assert EXACT.startswith(received.body)


def test_a_server_without_the_feature_is_passed_through_unchanged(caller: Caller, waits: Waits) -> None:
    with CuttingServer([b": keep-alive\n\n", b"data: {}\n\n", b"data: [DONE]\n\n"], resumable=False) as server:
        server.plan = [Cut(28), Cut(28, How.TIDY)]
        with caller(waits.transport(caller.inner())) as client:
            cut, ended, whole = (client.ask(f"{server.url}/chat/completions") for _ in range(3))

        assert cut.body == ended.body == b": keep-alive\n\ndata: {}\n\nda" + b"ta"
        assert isinstance(cut.error, httpx.RemoteProtocolError)
        assert ended.error is None
        assert whole.body == b": keep-alive\n\ndata: {}\n\ndata: [DONE]\n\n"
        assert server.asked == [POST] * 3


def test_a_caller_who_leaves_early_asks_for_nothing_more(server: CuttingServer, caller: Caller, waits: Waits) -> None:
    server.plan = [Cut(60, How.STALL)]
    with caller(waits.transport(caller.inner())) as client:
        received = client.ask(f"{server.url}/chat/completions", stop_after=1)
        # The client is still open: it was the response that closed its connection.
        assert server.hung_up.wait(5)

    assert received.body == EVENTS[0]
    assert server.asked == [POST]
    assert waits.pauses_s == []


def test_a_caller_who_leaves_a_resumed_stream_closes_that_connection(
    server: CuttingServer, caller: Caller, waits: Waits
) -> None:
    server.plan = [Cut(0), Cut(60, How.STALL)]
    with caller(waits.transport(caller.inner())) as client:
        client.ask(f"{server.url}/chat/completions", stop_after=1)
        assert server.hung_up.wait(5)

    assert server.asked == [POST, RESUME]


def test_the_callers_read_timeout_holds_for_every_connection(
    server: CuttingServer, caller: Caller, waits: Waits
) -> None:
    """A connection that went silent is as good as broken, also a resumed one."""
    server.plan = [Cut(40), Cut(30, How.STALL)]
    with caller(waits.transport(caller.inner()), timeout_s=0.25) as client:
        received = client.ask(f"{server.url}/chat/completions")

    assert (received.body, received.error) == (EXACT, None)
    assert server.asked == [POST, RESUME, RESUME]


def test_a_response_closed_during_an_outage_is_not_resumed(server: CuttingServer, waits: Waits) -> None:
    server.plan = [Cut(60)]
    with httpx.Client(transport=waits.transport(SyncCaller.inner())) as client:
        with client.stream("POST", f"{server.url}/chat/completions", json=STREAMING) as response:
            waits.then = response.close
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()

    assert server.asked == [POST]


def test_a_client_closed_during_an_outage_is_not_opened_again(server: CuttingServer, waits: Waits) -> None:
    server.plan = [Cut(60)]
    with httpx.Client(transport=waits.transport(SyncCaller.inner())) as client:
        waits.then = client.close
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(f"{server.url}/chat/completions", json=STREAMING)

    assert server.asked == [POST]


def test_an_async_client_closed_during_an_outage_is_not_opened_again(server: CuttingServer, waits: Waits) -> None:
    async def main() -> None:
        async def close(_: float) -> None:
            await client.aclose()

        async with httpx.AsyncClient(transport=waits.transport(AsyncCaller.inner(), async_sleep=close)) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(f"{server.url}/chat/completions", json=STREAMING)

    server.plan = [Cut(60)]
    asyncio.run(main())

    assert server.asked == [POST]


def test_cancelling_passes_through_a_pause(server: CuttingServer, waits: Waits) -> None:
    async def main() -> None:
        pausing = asyncio.Event()

        async def pause(_: float) -> None:
            pausing.set()
            await asyncio.Event().wait()

        async with httpx.AsyncClient(transport=waits.transport(AsyncCaller.inner(), async_sleep=pause)) as client:
            task = asyncio.create_task(client.post(f"{server.url}/chat/completions", json=STREAMING))
            await pausing.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    server.plan = [Cut(60)]
    asyncio.run(main())

    assert server.asked == [POST]


@pytest.mark.parametrize("plan", [[Cut(60, How.STALL)], [Cut(0), Cut(60, How.STALL)]], ids=["first", "resumed"])
def test_cancelling_passes_through_a_read_and_closes_its_connection(
    server: CuttingServer, waits: Waits, plan: list[Cut | Refuse]
) -> None:
    async def main() -> None:
        reading = asyncio.Event()

        async def read() -> None:
            async with client.stream("POST", f"{server.url}/chat/completions", json=STREAMING) as response:
                async for _ in response.aiter_raw():
                    reading.set()

        async with httpx.AsyncClient(transport=waits.transport(AsyncCaller.inner())) as client:
            task = asyncio.create_task(read())
            await reading.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(server.hung_up.wait, 5)

    server.plan = list(plan)
    asyncio.run(main())

    assert server.asked == [POST, RESUME][: len(plan)]


def test_the_real_pauses_are_short_at_first(server: CuttingServer, caller: Caller) -> None:
    """The defaults: the machine's clock, a thread's or a task's sleep, and chance."""
    server.plan = [Cut(60), Cut(30)]
    with caller(ResumingTransport(backoff_s=0.001)) as client:
        assert client.ask(f"{server.url}/chat/completions").body == EXACT


def test_one_name_serves_sync_and_async_clients_over_an_inner_transport_of_their_kind() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(204, stream=httpx.ByteStream(b""))

    class Sync(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return answer(request)

    class Async(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return answer(request)

    with SyncCaller(ResumingTransport(Sync())) as sync, AsyncCaller(ResumingTransport(Async())) as other:
        assert sync.ask("http://a/").response is not None
        assert other.ask("http://a/").response is not None
    with SyncCaller(ResumingTransport(Async())) as sync, pytest.raises(TypeError, match="async"):
        sync.ask("http://a/")
    with AsyncCaller(ResumingTransport(Sync())) as other, pytest.raises(TypeError, match="sync"):
        other.ask("http://a/")


def test_a_client_of_another_library_is_a_type_error() -> None:
    """openai-python's own default client is httpx2's; its failure would otherwise be a bare assertion."""
    httpx2 = pytest.importorskip("httpx2")
    with httpx2.Client(transport=ResumingTransport()) as client, pytest.raises(TypeError, match=r"httpx\.Client"):
        client.post("http://127.0.0.1:1/v1/chat/completions", json=STREAMING)


def test_closing_without_a_request_makes_no_inner_transport() -> None:
    with contextlib.closing(ResumingTransport()) as transport:
        asyncio.run(transport.aclose())

        assert transport._sync is None
        assert transport._async is None
