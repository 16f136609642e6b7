"""The three ways in which a request of our endpoints runs on AsyncLLM. vLLM validates, renders and parses:

- a plain stream: its outputs go straight from vLLM's output handler into the sink;
- any other stream: vLLM's own generator formats it, in a task of ours that feeds the sink;
- no stream: vLLM's handler makes the whole answer, in such a task, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import orjson
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from gateway.clock import Clock
from gateway.domain import Chunk, ChunkTemplate, Endpoint, RequestStats
from gateway.engine.base import CURRENT_STATS, Sink
from gateway.engine.vllm import error_mapping, media_connector
from gateway.engine.vllm.http_app import stream_errors
from gateway.engine.vllm.http_app.proxy import CAPTURE, Submission
from gateway.engine.vllm.http_app.untrusted_fields import Headers, UntrustedFieldFilter
from gateway.engine.vllm.output import whole_answers
from gateway.engine.vllm.output.fast_path import FastOutputPath, SinkQueue, parse_event
from gateway.engine.vllm.request_models import VllmCall, VllmPrepared
from gateway.errors import Unsupported
from gateway.offload import Offload

# A stream that vLLM formats gives way to others when one of its events has taken longer.
_FORMAT_S = 0.002

StartTask = Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """A request in the engine: `abort` ends its task, or what vLLM runs."""

    abort: Callable[[], object]


@dataclass(eq=False, slots=True)
class RequestRunner:
    """Prepares requests and submits them. `start_task` keeps what it starts until it has ended."""

    llm: Any
    app_state: Any
    clock: Clock
    fast_path: FastOutputPath
    field_filter: UntrustedFieldFilter
    start_task: StartTask
    answer_offload: Offload = field(default_factory=lambda: Offload("sluice-answer"))

    async def prepare(self, call: VllmCall, stats: RequestStats) -> VllmPrepared:
        media_connector.start_budget()
        serving = self._serving(call.endpoint)
        assert stats.id is not None
        stats.model = self._served(call.request.model)
        # vLLM makes the completion's id from this header. Ours must not be guessable, so the client's is not used.
        secret = stats.id.removeprefix(call.endpoint.id_prefix)
        headers = Headers({**self.field_filter.filter_headers(stats.caller.headers), "x-request-id": secret})
        raw = SimpleNamespace(headers=headers, state=SimpleNamespace())
        if not call.stream:
            return VllmPrepared(call, stats, raw)
        notes: list[Submission] = []
        token = CAPTURE.set(notes)
        try:
            made = await self._create(serving, call, raw)
        finally:
            CAPTURE.reset(token)
        if isinstance(made, ChunkTemplate):
            (submission,) = notes
            prompt_tokens = serving._extract_prompt_len(submission.prompt)
            stats.prompt_tokens = prompt_tokens
            template = replace(made, prompt_tokens=prompt_tokens)
            return VllmPrepared(call, stats, raw, template=template, submission=submission)
        return VllmPrepared(call, stats, raw, chunks=made)

    async def submit(self, prepared: VllmPrepared, sink: Sink) -> RunningRequest:
        if prepared.submission is not None:
            return await self._submit_fast(prepared, prepared.submission, sink)
        return RunningRequest(self.start_task(self._run(prepared, sink)).cancel)

    async def _submit_fast(self, prepared: VllmPrepared, submission: Submission, sink: Sink) -> RunningRequest:
        llm = self.llm
        options = {name: value for name, value in submission.options.items() if value is not None}
        try:
            queue = await llm.add_request(
                submission.request_id,
                submission.prompt,
                submission.params,
                arrival_time=prepared.stats.caller.arrival_wall_s,
                **options,
            )
        except asyncio.CancelledError:
            self.start_task(llm.abort(submission.request_id))
            raise
        except Exception as error:
            raise error_mapping.with_client_field(error_mapping.from_exception(error), prepared.call.request) from None
        prepared.stats.submitted = True
        constrained = submission.params.structured_outputs is not None
        self.fast_path.register(queue.request_id, sink, constrained=constrained)
        # Earlier outputs are in vLLM's own collector; there was no await in between, so none is lost.
        early = queue.output
        if early is not None:
            SinkQueue(sink, constrained=constrained).put(early)
        return RunningRequest(lambda: self.start_task(llm.abort(queue.request_id, internal=True)))

    async def _run(self, prepared: VllmPrepared, sink: Sink) -> None:
        """The task of a request that vLLM formats. Every error goes into the sink."""
        CURRENT_STATS.set(prepared.stats)
        media_connector.start_budget()
        try:
            if prepared.chunks is not None:
                logprobs = prepared.call.request.logprobs
                # In completions it is a number, and 0 requests log probabilities, too.
                await self._feed(prepared.chunks, sink, logprobs is None or logprobs is False)
            else:
                whole_answers.IS_WHOLE_ANSWER.set(True)
                made = await self._create(self._serving(prepared.call.endpoint), prepared.call, prepared.raw)
                sink.put(Chunk(await whole_answers.document(made, self.answer_offload, prepared.stats.caller.owner)))
            sink.finish()
        except Exception as error:
            sink.fail(error_mapping.from_exception(error))

    async def _feed(self, chunks: AsyncGenerator[str, None], sink: Sink, mergeable: bool) -> None:
        """Pass vLLM's formatted stream on, chunk by chunk. Raises the error that a chunk reports."""
        since_s = self.clock.now()
        async with aclosing(chunks):
            async for framed in chunks:
                # While outputs are queued, vLLM's generator formats one after the other without waiting.
                if (now_s := self.clock.now()) - since_s > _FORMAT_S:
                    await asyncio.sleep(0)
                    now_s = self.clock.now()
                since_s = now_s
                document = parse_event(framed)
                if document == b"[DONE]":
                    return
                if document.startswith(b'{"error"'):
                    raise stream_errors.from_event(orjson.loads(document)["error"])
                sink.put(Chunk(document))
                if sink.is_over_high_water and mergeable:
                    # Meanwhile vLLM's collector merges outputs. Log probabilities it would keep, at several times the
                    # size of their documents.
                    await sink.wait_writable()

    def _serving(self, endpoint: Endpoint) -> Any:
        name = "openai_serving_chat" if endpoint is Endpoint.CHAT else "openai_serving_completion"
        serving = getattr(self.app_state, name, None)
        if serving is None:
            raise Unsupported("The model that is served does not generate text, so it has no completions.")
        return serving

    def _served(self, name: str | None) -> str | None:
        """The model that serves the request. None for a name that is not served: clients' inventions stay out of
        logs."""
        models = self.app_state.openai_serving_models
        if not name:
            return str(models.base_model_paths[0].name)
        return name if models.is_base_model(name) or name in models.lora_requests else None

    async def _create(self, serving: Any, call: VllmCall, raw: Any) -> Any:
        """Call vLLM's handler for the endpoint. Raises our errors for those that it returns or raises."""
        create = serving.create_chat_completion if call.endpoint is Endpoint.CHAT else serving.create_completion
        try:
            made = await create(call.request, raw)
        except Exception as error:
            raise error_mapping.with_client_field(error_mapping.from_exception(error), call.request) from None
        if isinstance(made, ErrorResponse):
            refused = error_mapping.with_client_field(error_mapping.from_response(made), call.request)
            raise error_mapping.current_error() or refused
        return made
