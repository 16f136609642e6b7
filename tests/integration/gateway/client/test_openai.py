"""openai-python over the transport: its chat streams are exact, whatever happens to their connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.support.cutting_server import Cut, CuttingServer, How, Refuse, chat, with_comments
from tests.support.http_callers import Waits

TEXTS = ["Gr", "üße", ", ", "世界", " 😀", "\n\n", "!"]
TEXT = "".join(TEXTS)
EVENTS = chat(TEXTS)
WHOLE = len(with_comments(EVENTS))
CUTS = [(cut, how) for how in (How.FIN, How.RST, How.TIDY) for cut in range(0, WHOLE, 53)]
ASKED: dict[str, Any] = {"model": "canned", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def server() -> Iterator[CuttingServer]:
    with CuttingServer(EVENTS) as made:
        yield made


def test_the_sync_client_reads_the_exact_text_wherever_its_connection_is_cut(
    server: CuttingServer, waits: Waits
) -> None:
    inner = httpx.Client(transport=waits.transport())
    with openai.OpenAI(base_url=server.url, api_key="me", max_retries=0, http_client=inner) as client:
        for cut, how in CUTS:
            server.plan = [Cut(cut, how), Cut(cut // 3, how)]
            chunks = list(client.chat.completions.create(stream=True, **ASKED))

            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT, (cut, how)
            assert chunks[-1].choices[0].finish_reason == "stop"
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer me"}


def test_the_async_client_reads_the_exact_text_wherever_its_connection_is_cut(
    server: CuttingServer, waits: Waits
) -> None:
    async def main() -> None:
        inner = httpx.AsyncClient(transport=waits.transport())
        async with openai.AsyncOpenAI(base_url=server.url, api_key="me", max_retries=0, http_client=inner) as client:
            for cut, how in CUTS:
                server.plan = [Cut(cut, how), Cut(cut // 3, how)]
                stream = await client.chat.completions.create(stream=True, **ASKED)
                chunks = [chunk async for chunk in stream]

                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT, (cut, how)
                assert chunks[-1].choices[0].finish_reason == "stop"

    asyncio.run(main())
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer me"}


def test_a_stream_that_cannot_be_resumed_raises_the_clients_own_error(server: CuttingServer, waits: Waits) -> None:
    server.plan = [Cut(WHOLE // 2, How.TIDY), Refuse(410)]
    inner = httpx.Client(transport=waits.transport())
    with openai.OpenAI(base_url=server.url, api_key="me", max_retries=0, http_client=inner) as client:
        stream = client.chat.completions.create(stream=True, **ASKED)
        with pytest.raises(openai.APIConnectionError) as caught:
            list(stream)

    assert isinstance(caught.value.__cause__, httpx.RemoteProtocolError)


def test_leaving_a_stream_with_break_asks_for_nothing_more(server: CuttingServer, waits: Waits) -> None:
    server.plan = [Cut(WHOLE // 2, How.STALL)]
    inner = httpx.Client(transport=waits.transport())
    with openai.OpenAI(base_url=server.url, api_key="me", max_retries=0, http_client=inner) as client:
        with client.chat.completions.create(stream=True, **ASKED) as stream:
            for _ in stream:
                break
        assert server.hung_up.wait(5)

    assert server.asked == ["POST /v1/chat/completions"]
