"""openai-python over ResumingTransport, every connection of which is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai

from gateway.client import ResumingTransport
from tests.faults.test_resume import SCHEMA, TOOL, WEATHER
from tests.support.chaos_proxy import Chaos, ChaosProxy
from tests.support.server import ASK, MODEL, Server

ASKED: dict[str, dict[str, Any]] = {
    "chat": {"messages": ASK},
    "tools": {"messages": WEATHER, "tools": [TOOL]},
    "structured output": {"messages": ASK, "response_format": SCHEMA, "max_tokens": 80},
}


def collect(chunks: list[Any]) -> tuple[str, str, str]:
    """Text, tool arguments, finish reason."""
    text, arguments, reason = "", "", ""
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            arguments += "".join(call.function.arguments or "" for call in choice.delta.tool_calls or [])
            reason = choice.finish_reason or reason
    return text, arguments, reason


@contextmanager
def cutting(server: Server, after_bytes: int) -> Iterator[ChaosProxy]:
    """Cuts every connection after so many bytes of its answer."""
    with ChaosProxy(server.port, Chaos(cut_after=after_bytes)) as proxy:
        yield proxy


def test_openai_python_over_the_resuming_transport_gets_the_same_text_through_cuts(demo: Server, figure: Any) -> None:
    wanted: dict[str, Any] = {}
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as plain:
        for kind, body in ASKED.items():
            stream = plain.chat.completions.create(model=MODEL, temperature=0, stream=True, **body)
            wanted[kind] = collect(list(stream))
    assert all(reason in ("stop", "tool_calls") for _, _, reason in wanted.values()), wanted
    assert all(text or arguments for text, arguments, _ in wanted.values()), wanted

    def options(proxy: ChaosProxy) -> dict[str, Any]:
        return {"base_url": f"{proxy.url}/v1", "api_key": "none", "max_retries": 0}

    async def by_async(proxy: ChaosProxy, body: dict[str, Any]) -> tuple[str, str, str]:
        inner = httpx.AsyncClient(transport=ResumingTransport(backoff_s=0.01), timeout=30)
        async with openai.AsyncOpenAI(http_client=inner, **options(proxy)) as client:
            stream: Any = await client.chat.completions.create(model=MODEL, temperature=0, stream=True, **body)
            return collect([chunk async for chunk in stream])

    cuts = 0
    different = []
    # The second suffices for one event and little more.
    for after_bytes, by_rst in ((1500, False), (800, True)):
        for kind, body in ASKED.items():
            with cutting(demo, after_bytes) as proxy:
                proxy.chaos = Chaos(cut_after=after_bytes, by_rst=by_rst)
                inner = httpx.Client(transport=ResumingTransport(backoff_s=0.01), timeout=30)
                with openai.OpenAI(http_client=inner, **options(proxy)) as client:
                    stream = client.chat.completions.create(model=MODEL, temperature=0, stream=True, **body)
                    results = [collect(list(stream))]
                results.append(asyncio.run(by_async(proxy, body)))
                different += [kind for result in results if result != wanted[kind]]
                cuts += proxy.cuts
                assert proxy.cuts >= 2, "nothing was cut"
    figure("resume", f"openai-python over ResumingTransport, {cuts} cuts: different texts", str(len(different)), "0")

    assert different == []
