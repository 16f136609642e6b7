"""AsyncLLM as our `Engine`.

vLLM validates, renders and parses; this file only decides in which of three ways a request runs:

- a plain stream: its outputs go straight from vLLM's output handler into the sink;
- any other stream: vLLM's own generator formats it, in a task of ours that feeds the sink;
- no stream: vLLM's handler makes the whole answer, in such a task too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import orjson
from vllm.entrypoints.serve.utils.orca_metrics import create_orca_header, get_named_metrics_from_prometheus
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from gateway.clock import Clock
from gateway.domain import AppOptions, Cause, Chunk, ChunkTemplate, Endpoint, RequestStats
from gateway.engine.base import CURRENT_STATS, ASGIApp, RecoveryReport, Route, Sink
from gateway.engine.bounded_json import BodyLimits, read_document
from gateway.engine.vllm import error_mapping, media_connector, prompt_offload
from gateway.engine.vllm.compat.imports import find
from gateway.engine.vllm.core_client import watch
from gateway.engine.vllm.core_client.restartable import RestartableCoreClient
from gateway.engine.vllm.grammars import grammar_validation
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.grammars.service import GrammarService
from gateway.engine.vllm.http_app import app, stream_errors
from gateway.engine.vllm.http_app.body_intake import BodyIntake
from gateway.engine.vllm.http_app.document_reader import DocumentReader
from gateway.engine.vllm.http_app.error_normalizer import normalize_errors
from gateway.engine.vllm.http_app.proxy import CAPTURE, EngineProxy, Submission
from gateway.engine.vllm.http_app.running_requests import RunningRequests, abort_on_exit
from gateway.engine.vllm.http_app.untrusted_fields import Headers, UntrustedFieldFilter
from gateway.engine.vllm.output import isolation, whole_answers
from gateway.engine.vllm.output.batched_stats import BatchedStats
from gateway.engine.vllm.output.fast_path import FastOutputPath, SinkQueue, parse_event
from gateway.engine.vllm.request_models import VllmCall, VllmPrepared, read_request
from gateway.errors import SluiceError, Unsupported
from gateway.offload import Offload

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A stream that is formatted gives way to others when one of its events has taken longer.
_FORMAT_S = 0.002
# The engine process gets this long to clean up its shared memory before it is killed.
_STOP_WITHIN_S = 5.0


class VllmEngine:
    """One running AsyncLLM with vLLM's app on it."""

    def __init__(
        self,
        llm: Any,
        core: RestartableCoreClient,
        clock: Clock,
        *,
        make_core: Callable[[], Awaitable[Any]],
        hang_timeouts: watch.HangTimeouts,
        trust_client_fields: bool,
        grammar_limits: GrammarLimits,
        limits: BodyLimits,
        prepare_timeout_s: float,
    ) -> None:
        """`core` is what `llm` uses as its engine client; `make_core` starts another engine and gives its client;
        `prepare_timeout_s` bounds what it takes to check a body or to render a prompt."""
        self._llm = llm
        self._clock = clock
        self._make_core = make_core
        self._hang_timeouts = hang_timeouts
        self.unready_reason: str | None = None
        self._core = core
        self._field_filter = UntrustedFieldFilter(trust_client_fields)
        self._limits = limits
        self._answer_offload = Offload("sluice-answer")
        self._documents = DocumentReader(
            self._field_filter, limits, llm.model_config.get_vocab_size(), llm.model_config.max_model_len
        )
        self._prepare_timeout_s = prepare_timeout_s
        self._running = RunningRequests()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stack = AsyncExitStack()
        self._grammars = GrammarService(llm, grammar_limits, clock)

    async def open(self, args: Any) -> None:
        """Build vLLM's app on this engine. To be called once, in the loop that will serve."""
        statistics = BatchedStats(self._llm.logger_manager, IterationStats)
        self._fast_path = FastOutputPath(self._llm.output_processor, statistics, self._core.has_backlog, self._clock)
        if statistics.can_batch:
            self._core.consume_inline = self._fast_path.consume
        prompt_offload.install_prompt_offload(
            self._llm,
            foreign_templates=bool(args.trust_request_chat_template),
            timeout_s=self._prepare_timeout_s,
        )
        # Started now and not with the first request: this task is the one that notices a death.
        self._llm._run_output_handler()
        await self._llm.reset_mm_cache()
        tasks = await self._llm.get_supported_tasks()
        verify = grammar_validation.make_params_check(self._llm, tasks)
        engine_proxy = EngineProxy(self._llm, self._clock, self._running, verify)
        self._app = await app.build_app(engine_proxy, args, tasks)
        self._options = AppOptions(
            root_path=_prefix(args.root_path),
            has_docs=not args.disable_fastapi_docs,
            counts_load=bool(args.enable_server_load_tracking),
        )
        intake = BodyIntake(
            self._app, self._field_filter, self._documents, self._prepare_timeout_s, error_mapping.from_validator
        )
        self._running.is_background_task = self._in_background
        self._http = normalize_errors(abort_on_exit(intake, self._running, self._abort), self._engine_error)
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))

    @property
    def model(self) -> str:
        return str(self._app.state.openai_serving_models.base_model_paths[0].name)

    def schema(self) -> dict[str, Any]:
        return self._app.openapi()  # type: ignore[no-any-return]

    @property
    def options(self) -> AppOptions:
        return self._options

    async def model_card(self, name: str) -> dict[str, Any] | None:
        served = await self._app.state.openai_serving_models.show_available_models()
        card = next((card.model_dump() for card in served.data if card.id == name), None)
        if card is not None:
            # What Anthropic's clients look for.
            created = datetime.fromtimestamp(card["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            card |= {"type": "model", "display_name": name, "created_at": created}
        return card

    def load_report(self, kind: str, queued: int) -> str | None:
        found = [
            (name, value + queued if name == "num_requests_waiting" else value)
            for name, value in get_named_metrics_from_prometheus()
        ]
        return (create_orca_header(kind, found) or {}).get("endpoint-load-metrics")

    @property
    def http(self) -> ASGIApp:
        return self._http

    def route(self, method: str, path: str) -> Route:
        return app.classify(self._app, method, path)

    def methods(self, path: str) -> frozenset[str]:
        return app.allowed_methods(self._app, path)

    def template(self, path: str) -> str:
        return app.path_template(self._app, path)

    def parse(self, endpoint: Endpoint, body: bytes) -> VllmCall:
        return read_request(endpoint, body, self._documents)

    async def check(self, call: VllmCall, stats: RequestStats) -> None:
        await self._grammars.check_request(self._app.state.online_renderer, call.request, stats.caller.owner)

    async def check_body(self, path: str, body: bytes, stats: RequestStats) -> None:
        await self._grammars.check_body(
            self._app.state.online_renderer, path, partial(read_document, body, self._limits), body, stats.caller.owner
        )

    async def prepare(self, call: VllmCall, stats: RequestStats) -> VllmPrepared:
        media_connector.start_budget()
        serving = self._serving(call.endpoint)
        assert stats.id is not None
        stats.model = self._served(call.request.model)
        # vLLM makes the completion's id from this header; ours must not be guessable, so the client's never gets here.
        secret = stats.id.removeprefix(call.endpoint.id_prefix)
        headers = Headers({**self._field_filter.filter_headers(stats.caller.headers), "x-request-id": secret})
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

    async def submit(self, prepared: VllmPrepared, sink: Sink) -> _Running:
        if prepared.submission is not None:
            return await self._submit_fast(prepared, prepared.submission, sink)
        return _Running(self._own(self._run(prepared, sink)))

    def has_request(self, request_id: str) -> bool:
        return self._running.contains(request_id)

    def cancel(self, request_id: str, owner: str | None) -> RequestStats | None:
        runs = self._running.find(request_id, owner)
        if not runs:
            return None
        stats = runs[0].stats
        for run in runs:
            assert run.stats is not None
            run.stats.end(Cause.CANCELLED)
        self._abort([run.request_id for run in runs])
        return stats

    def _abort(self, request_ids: list[str]) -> None:
        self._own(self._llm.abort(request_ids))

    def _in_background(self, task: asyncio.Task[Any]) -> bool:
        """Whether vLLM runs a response in this task that its client wants to fetch later."""
        serving = getattr(self._app.state, "openai_serving_responses", None)
        return task in getattr(serving, "background_tasks", {}).values()

    async def wait_dead(self) -> None:
        was_busy = False

        def look(trouble: str | None) -> None:
            nonlocal was_busy
            self.unready_reason = trouble
            is_busy = self._llm.output_processor.has_unfinished_requests()
            if was_busy and not is_busy:
                self._zero_gauges()
            was_busy = is_busy
            if failed := isolation.restart_output_handler(self._llm):
                self._own(self._llm.abort(failed, internal=True))

        try:
            await watch.wait_dead(self._core, self._clock, self._hang_timeouts, look)
        finally:
            self.unready_reason = None

    async def restart(self, *, last: bool = False) -> RecoveryReport:
        await asyncio.to_thread(self._core.free_dead_engine)
        return await self._core.replace(await self._make_core(), last=last)

    def take_explained_deaths(self) -> int:
        return self._core.take_explained_deaths()

    def fail_all(self) -> None:
        self._core.fail_all()

    def _zero_gauges(self) -> None:
        """vLLM's gauges are written by engine steps only. After an abort there is no further step, and autoscalers
        would see requests running for ever."""
        if self._llm.logger_manager is not None:
            for index in range(self._core.engine_count):
                self._llm.logger_manager.record(
                    scheduler_stats=SchedulerStats(), iteration_stats=None, engine_idx=index
                )

    async def stop(self) -> None:
        self._core.cancel_trial()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._grammars.close()
        await self._stack.aclose()
        await asyncio.to_thread(self._llm.shutdown, _STOP_WITHIN_S)

    # The three ways to run.

    async def _submit_fast(self, prepared: VllmPrepared, submission: Submission, sink: Sink) -> _Running:
        llm = self._llm
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
            self._own(llm.abort(submission.request_id))
            raise
        except Exception as error:
            raise error_mapping.with_client_field(error_mapping.from_exception(error), prepared.call.request) from None
        prepared.stats.submitted = True
        constrained = submission.params.structured_outputs is not None
        self._fast_path.register(queue.request_id, sink, constrained=constrained)
        # What came before is in vLLM's own collector; there was no await in between, so nothing is lost.
        early = queue.output
        if early is not None:
            SinkQueue(sink, constrained=constrained).put(early)
        return _Running(None, self, queue.request_id)

    async def _run(self, prepared: VllmPrepared, sink: Sink) -> None:
        """The task of a request that vLLM formats itself; every failure ends in the sink."""
        CURRENT_STATS.set(prepared.stats)
        media_connector.start_budget()
        try:
            if prepared.chunks is not None:
                logprobs = prepared.call.request.logprobs
                # In completions a number, and 0 asks for some, too.
                await self._feed(prepared.chunks, sink, logprobs is None or logprobs is False)
            else:
                whole_answers.IS_WHOLE_ANSWER.set(True)
                made = await self._create(self._serving(prepared.call.endpoint), prepared.call, prepared.raw)
                sink.put(Chunk(await whole_answers.document(made, self._answer_offload, prepared.stats.caller.owner)))
            sink.finish()
        except Exception as error:
            sink.fail(error_mapping.from_exception(error))

    async def _feed(self, chunks: AsyncGenerator[str, None], sink: Sink, mergeable: bool) -> None:
        """Pass vLLM's formatted stream on, chunk by chunk; its in-band errors become ours."""
        since_s = self._clock.now()
        async with aclosing(chunks):
            async for framed in chunks:
                # While outputs have piled up, vLLM's generator formats one after the other without waiting.
                if (now_s := self._clock.now()) - since_s > _FORMAT_S:
                    await asyncio.sleep(0)
                    now_s = self._clock.now()
                since_s = now_s
                document = parse_event(framed)
                if document == b"[DONE]":
                    return
                if document.startswith(b'{"error"'):
                    raise stream_errors.from_event(orjson.loads(document)["error"])
                sink.put(Chunk(document))
                if sink.is_over_high_water and mergeable:
                    # Meanwhile vLLM's collector merges what the engine says. Log probabilities it would keep, at
                    # several times the size of their documents.
                    await sink.wait_writable()

    def _serving(self, endpoint: Endpoint) -> Any:
        name = "openai_serving_chat" if endpoint is Endpoint.CHAT else "openai_serving_completion"
        serving = getattr(self._app.state, name, None)
        if serving is None:
            raise Unsupported("The model that is served does not generate text, so it has no completions.")
        return serving

    def _served(self, name: str | None) -> str | None:
        """The model that this request will meet; None for a name that nobody serves, which is the client's invention
        and has no business in logs."""
        models = self._app.state.openai_serving_models
        if not name:
            return self.model
        return name if models.is_base_model(name) or name in models.lora_requests else None

    async def _create(self, serving: Any, call: VllmCall, raw: Any) -> Any:
        """vLLM's handler for the endpoint; its errors, returned or raised, leave here as ours."""
        create = serving.create_chat_completion if call.endpoint is Endpoint.CHAT else serving.create_completion
        try:
            made = await create(call.request, raw)
        except Exception as error:
            raise error_mapping.with_client_field(error_mapping.from_exception(error), call.request) from None
        if isinstance(made, find("ErrorResponse")):
            refused = error_mapping.with_client_field(error_mapping.from_response(made), call.request)
            raise error_mapping.current_error() or refused
        return made

    def _engine_error(self) -> SluiceError | None:
        return error_mapping.from_exception(self._llm.dead_error) if self._llm.errored else None

    def _own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@dataclass(frozen=True, slots=True)
class _Running:
    """A request in the engine: either a task of ours, or a request of vLLM's own."""

    task: asyncio.Task[None] | None
    engine: VllmEngine | None = None
    internal_id: str = ""

    def abort(self) -> None:
        if self.task is not None:
            self.task.cancel()
        elif self.engine is not None:
            self.engine._own(self.engine._llm.abort(self.internal_id, internal=True))


def _prefix(root_path: str | None) -> str:
    """vLLM's `--root-path` as what stands before a path: `/llm`, or nothing."""
    bare = (root_path or "").strip("/")
    return f"/{bare}" if bare else ""


__all__ = ["VllmEngine"]
