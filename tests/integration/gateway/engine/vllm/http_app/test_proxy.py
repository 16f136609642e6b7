"""Ids of the streams of vLLM's own endpoints, and their aborts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.clock import SystemClock
from gateway.domain import Cause, RequestStats


def streaming(*pieces: str) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def sent(parts: Any, app: Any) -> list[Any]:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    asyncio.run(parts.error_normalizer.normalize_errors(app, lambda: None)({"type": "http", "path": "/x"}, None, send))
    return messages


def test_streams_of_vllms_own_endpoints_carry_the_id_that_cancels_them(parts: Any, stats: RequestStats) -> None:
    created = 'event: response.created\ndata: {"response":{"id":"resp_1","object":"response"}}\n\n'
    stats.uses_engine, stats.endpoint = True, "/v1/responses"
    start, *body = sent(parts, streaming(created, "data: 2\n\n"))

    assert (b"x-stream-id", b"resp_1") in start["headers"]
    assert (b"x-accel-buffering", b"no") in start["headers"]
    assert [one["body"] for one in body] == [created.encode(), b"data: 2\n\n", b""]
    assert stats.id == "resp_1"


def test_the_engines_request_id_is_recorded_at_once(parts: Any, stats: RequestStats) -> None:
    stats.uses_engine, stats.endpoint = True, "/v1/messages"
    proxy = parts.proxy.EngineProxy(
        SimpleNamespace(generate=None, vllm_config=CONFIG),
        SystemClock(),
        parts.running_requests.RunningRequests(),
        lambda _: None,
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        proxy.generate("p", parts.SamplingParams(), "chatcmpl-7")
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n"})

    messages = sent(parts, app)

    assert (b"x-stream-id", b"chatcmpl-7") in messages[0]["headers"]


CONFIG = SimpleNamespace(speculative_config=None, scheduler_config=SimpleNamespace(stream_interval=1))


class Llm:
    """An engine that ends a request as aborted."""

    vllm_config = CONFIG

    def __init__(self) -> None:
        self.abort_calls: list[Any] = []
        self.go = asyncio.Event()

    async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
        for reason in (None, "abort"):
            if reason:
                await self.go.wait()
            choice = SimpleNamespace(index=0, token_ids=[1], finish_reason=reason)
            yield SimpleNamespace(outputs=[choice], prompt_token_ids=[1, 2])

    async def abort(self, request_id: Any, internal: bool = False) -> None:
        self.abort_calls.append((request_id, internal))
        self.go.set()


@pytest.mark.parametrize(
    ("endpoint", "ids", "internal", "ends"),
    [
        ("/inference/v1/generate", ["gen-1"], False, True),
        ("/inference/v1/generate", "gen-1", False, True),
        ("/inference/v1/generate", ["gen-1-abcd"], True, True),
        ("/inference/v1/generate", ["gen-2"], False, False),
        ("/inference/v1/generate", ["gen-10"], True, False),
        ("/v1/messages", ["gen-1"], False, False),
    ],
)
def test_an_abort_by_vllms_endpoint_ends_its_own_streams_as_it_promises(
    parts: Any, stats: RequestStats, endpoint: str, ids: Any, internal: bool, ends: bool
) -> None:
    async def run() -> list[Any]:
        stats.endpoint = endpoint
        llm = Llm()
        engagements = parts.running_requests.RunningRequests()
        proxy = parts.proxy.EngineProxy(llm, SystemClock(), engagements, lambda _: None)
        params = parts.SamplingParams(output_kind=parts.RequestOutputKind.DELTA)
        reasons = []
        async for output in proxy.generate("p", params, "gen-1"):
            reasons.append(output.outputs[0].finish_reason)
            if len(reasons) == 1:
                await proxy.abort(ids, internal=internal)
                assert llm.abort_calls == [(ids, internal)]
        assert engagements.requests == []
        return reasons

    if ends:
        assert asyncio.run(run()) == [None, "abort"]
        assert stats.cause is Cause.CANCELLED
    else:
        with pytest.raises(parts.proxy.AbortedByEngine):
            asyncio.run(run())


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
@pytest.mark.parametrize("kind", ["DELTA", "FINAL_ONLY", "CUMULATIVE"])
def test_a_late_readers_ending_is_apart_where_it_would_share_a_chunk_with_text(
    parts: Any, stats: RequestStats, endpoint: str, kind: str
) -> None:
    stats.endpoint = endpoint

    class Late:
        vllm_config = CONFIG

        async def generate(self, prompt: Any, params: Any, request_id: str) -> AsyncIterator[Any]:
            choice = SimpleNamespace(
                index=0, text="abc", token_ids=[1, 2, 3], finish_reason="stop", stop_reason=None, logprobs=None
            )
            yield SimpleNamespace(outputs=[choice], prompt_token_ids=[1], finished=True)

    async def run() -> list[Any]:
        proxy = parts.proxy.EngineProxy(Late(), SystemClock(), parts.running_requests.RunningRequests(), lambda _: None)
        params = parts.SamplingParams(output_kind=parts.RequestOutputKind[kind])
        outputs = [output async for output in proxy.generate("p", params, "x")]
        return [(one.outputs[0].text, one.outputs[0].finish_reason) for one in outputs]

    whole = [("abc", "stop")]
    apart = [("abc", None), ("", "stop")]
    assert asyncio.run(run()) == (apart if kind == "DELTA" and endpoint != "/v1/messages" else whole)
    assert stats.completion_tokens == 3
