"""The proxy in front of an engine, with vLLM's own parameters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from gateway.clock import SystemClock
from gateway.domain import Cause, RequestStats
from gateway.engine.vllm.http_app.proxy import AbortedByEngine, EngineProxy
from gateway.engine.vllm.http_app.running_requests import RunningRequests

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
def test_an_abort_by_vllms_endpoint_ends_its_own_streams_well_and_others_with_an_error(
    stats: RequestStats, endpoint: str, ids: Any, internal: bool, ends: bool
) -> None:
    async def run() -> list[Any]:
        stats.endpoint = endpoint
        llm = Llm()
        running = RunningRequests()
        proxy = EngineProxy(llm, SystemClock(), running, lambda _: None)
        params = SamplingParams(output_kind=RequestOutputKind.DELTA)
        reasons = []
        async for output in proxy.generate("p", params, "gen-1"):
            reasons.append(output.outputs[0].finish_reason)
            if len(reasons) == 1:
                await proxy.abort(ids, internal=internal)
                assert llm.abort_calls == [(ids, internal)]
        assert running.submissions == []
        return reasons

    if ends:
        assert asyncio.run(run()) == [None, "abort"]
        assert stats.cause is Cause.CANCELLED
    else:
        with pytest.raises(AbortedByEngine):
            asyncio.run(run())


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
@pytest.mark.parametrize("kind", ["DELTA", "FINAL_ONLY", "CUMULATIVE"])
def test_a_final_delta_with_text_is_split_where_a_chunk_would_have_both(
    stats: RequestStats, endpoint: str, kind: str
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
        proxy = EngineProxy(Late(), SystemClock(), RunningRequests(), lambda _: None)
        params = SamplingParams(output_kind=RequestOutputKind[kind])
        outputs = [output async for output in proxy.generate("p", params, "x")]
        return [(one.outputs[0].text, one.outputs[0].finish_reason) for one in outputs]

    unsplit = [("abc", "stop")]
    split = [("abc", None), ("", "stop")]
    assert asyncio.run(run()) == (split if kind == "DELTA" and endpoint != "/v1/messages" else unsplit)
    assert stats.completion_tokens == 3
