"""AsyncLLM as our `Engine`: vLLM's app on it, its death and restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from vllm.entrypoints.serve.utils.orca_metrics import create_orca_header, get_named_metrics_from_prometheus
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from gateway.asgi import ASGIApp
from gateway.clock import Clock
from gateway.domain import AppOptions, Cause, Endpoint, RequestStats
from gateway.engine.base import RecoveryReport, Route, Sink
from gateway.engine.bounded_json import BodyLimits, read_document
from gateway.engine.vllm import error_mapping, prompt_offload
from gateway.engine.vllm.core_client import watch
from gateway.engine.vllm.core_client.restartable import RestartableCoreClient
from gateway.engine.vllm.grammars import grammar_validation
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.grammars.service import GrammarService
from gateway.engine.vllm.http_app import app
from gateway.engine.vllm.http_app.body_intake import BodyIntake
from gateway.engine.vllm.http_app.document_reader import DocumentReader
from gateway.engine.vllm.http_app.error_normalizer import normalize_errors
from gateway.engine.vllm.http_app.proxy import EngineProxy
from gateway.engine.vllm.http_app.running_requests import RunningRequests
from gateway.engine.vllm.http_app.untrusted_fields import UntrustedFieldFilter
from gateway.engine.vllm.output import isolation
from gateway.engine.vllm.output.batched_stats import BatchedStats
from gateway.engine.vllm.output.fast_path import FastOutputPath
from gateway.engine.vllm.request_models import VllmCall, VllmPrepared, read_request
from gateway.engine.vllm.request_runner import RequestRunner, RunningRequest
from gateway.errors import SluiceError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The engine process gets this long to clean up its shared memory before it is killed.
_STOP_WITHIN_S = 5.0


@dataclass(eq=False)
class VllmEngine:
    """One running AsyncLLM with vLLM's app on it.

    `core` is the engine client of `llm`; `make_core` starts another engine and returns vLLM's client of it;
    `prepare_timeout_s` is the limit on checking a body or rendering a prompt.
    """

    llm: Any
    core: RestartableCoreClient
    clock: Clock
    make_core: Callable[[], Awaitable[Any]]
    hang_timeouts: watch.HangTimeouts
    trust_client_fields: bool
    grammar_limits: GrammarLimits
    limits: BodyLimits
    prepare_timeout_s: float

    def __post_init__(self) -> None:
        self.unready_reason: str | None = None
        self._field_filter = UntrustedFieldFilter(self.trust_client_fields)
        model_config = self.llm.model_config
        self._documents = DocumentReader(
            self._field_filter, self.limits, model_config.get_vocab_size(), model_config.max_model_len
        )
        self._running = RunningRequests()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stack = AsyncExitStack()
        self._grammars = GrammarService(self.llm, self.grammar_limits, self.clock)

    async def open(self, args: Any) -> None:
        """Build vLLM's app on this engine. To be called once, in the loop that will serve."""
        statistics = BatchedStats(self.llm.logger_manager, IterationStats)
        fast_path = FastOutputPath(self.llm.output_processor, statistics, self.core.has_backlog, self.clock)
        if statistics.can_batch:
            self.core.consume_inline = fast_path.consume
        prompt_offload.install_prompt_offload(
            self.llm,
            foreign_templates=bool(args.trust_request_chat_template),
            timeout_s=self.prepare_timeout_s,
        )
        # Started now and not with the first request, because this task notices a death.
        self.llm._run_output_handler()
        await self.llm.reset_mm_cache()
        tasks = await self.llm.get_supported_tasks()
        verify = grammar_validation.make_params_check(self.llm, tasks)
        engine_proxy = EngineProxy(self.llm, self.clock, self._running, verify)
        self._app = await app.build_app(engine_proxy, args, tasks)
        self._runner = RequestRunner(
            self.llm,
            self._app.state,
            self.clock,
            fast_path=fast_path,
            field_filter=self._field_filter,
            start_task=self._start_task,
        )
        root_path = (args.root_path or "").strip("/")
        self.options = AppOptions(
            root_path=f"/{root_path}" if root_path else "",
            has_docs=not args.disable_fastapi_docs,
            counts_load=bool(args.enable_server_load_tracking),
        )
        intake = BodyIntake(self._app, self._documents, self.prepare_timeout_s, error_mapping.from_validator)
        self._running.is_background_task = self._in_background
        self.http: ASGIApp = normalize_errors(app.abort_on_exit(intake, self._running, self._abort), self._engine_error)
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))

    @property
    def model(self) -> str:
        return str(self._app.state.openai_serving_models.base_model_paths[0].name)

    def schema(self) -> dict[str, Any]:
        return self._app.openapi()  # type: ignore[no-any-return]

    async def model_card(self, name: str) -> dict[str, Any] | None:
        served = await self._app.state.openai_serving_models.show_available_models()
        card = next((card.model_dump() for card in served.data if card.id == name), None)
        if card is not None:
            # Anthropic's clients read these.
            created = datetime.fromtimestamp(card["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            card |= {"type": "model", "display_name": name, "created_at": created}
        return card

    def load_report(self, kind: str, queued: int) -> str | None:
        found = [
            (name, value + queued if name == "num_requests_waiting" else value)
            for name, value in get_named_metrics_from_prometheus()
        ]
        return (create_orca_header(kind, found) or {}).get("endpoint-load-metrics")

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
            self._app.state.online_renderer, path, partial(read_document, body, self.limits), body, stats.caller.owner
        )

    async def prepare(self, call: VllmCall, stats: RequestStats) -> VllmPrepared:
        return await self._runner.prepare(call, stats)

    async def submit(self, prepared: VllmPrepared, sink: Sink) -> RunningRequest:
        return await self._runner.submit(prepared, sink)

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
        self._start_task(self.llm.abort(request_ids))

    def _in_background(self, task: asyncio.Task[Any]) -> bool:
        """Whether this task of vLLM runs a background response, which its client fetches later."""
        serving = getattr(self._app.state, "openai_serving_responses", None)
        return task in getattr(serving, "background_tasks", {}).values()

    async def wait_dead(self) -> None:
        was_busy = False

        def observe(unready_reason: str | None) -> None:
            nonlocal was_busy
            self.unready_reason = unready_reason
            is_busy = self.llm.output_processor.has_unfinished_requests()
            if was_busy and not is_busy:
                self._zero_gauges()
            was_busy = is_busy
            if failed := isolation.restart_output_handler(self.llm):
                self._start_task(self.llm.abort(failed, internal=True))

        try:
            await watch.wait_dead(self.core, self.clock, self.hang_timeouts, observe)
        finally:
            self.unready_reason = None

    async def restart(self, *, last: bool = False) -> RecoveryReport:
        await asyncio.to_thread(self.core.free_dead_engine)
        return await self.core.replace(await self.make_core(), last=last)

    def take_explained_deaths(self) -> int:
        return self.core.take_explained_deaths()

    def fail_all(self) -> None:
        self.core.fail_all()

    def _zero_gauges(self) -> None:
        """Write zeros into vLLM's gauges, which engine steps write: after an abort there is no further step, and
        autoscalers would see requests running forever."""
        if self.llm.logger_manager is not None:
            for index in range(self.core.engine_count):
                self.llm.logger_manager.record(scheduler_stats=SchedulerStats(), iteration_stats=None, engine_idx=index)

    async def stop(self) -> None:
        self.core.cancel_trial()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._grammars.close()
        await self._stack.aclose()
        await asyncio.to_thread(self.llm.shutdown, _STOP_WITHIN_S)

    def _engine_error(self) -> SluiceError | None:
        return error_mapping.from_exception(self.llm.dead_error) if self.llm.errored else None

    def _start_task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
