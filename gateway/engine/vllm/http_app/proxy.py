"""The engine client that vLLM's own app runs on: it forwards to the real AsyncLLM, counts the current request's tokens
and turns an aborted request into an error, never into a good end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from gateway.clock import Clock
from gateway.domain import Cause, RequestStats
from gateway.engine.base import CURRENT_STATS
from gateway.engine.vllm import error_mapping
from gateway.engine.vllm.exceptions import Aborted, EngineKilledByRequest
from gateway.engine.vllm.http_app.running_requests import RunningRequests, RunningSubmission
from gateway.engine.vllm.output.final_output import FinalOutputSplitter

_BROKEN_OFF = frozenset({Cause.DISCONNECTED, Cause.DEADLINE_EXCEEDED, Cause.SERVER_DRAINING, Cause.REFUSED_DRAINING})
"""Causes after which no client waits for an answer. A request that has completed may have left background work."""

_ENDS_ABORTED = frozenset({"/inference/v1/generate"})
"""Endpoints where an aborted request ends with that finish reason, by contract. Elsewhere it would hide an abort."""
_ENDS_IN_A_CHUNK = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Endpoints whose streams end a choice with a chunk that can contain text, too."""


@dataclass(frozen=True, slots=True)
class Submission:
    """The arguments with which a serving object of vLLM's calls `generate`."""

    prompt: Any
    params: Any
    request_id: str
    options: dict[str, Any]


CAPTURE: ContextVar[list[Submission] | None] = ContextVar("sluice_capture", default=None)
"""Where set, the proxy appends every submission to this list, for a caller that submits it in its own way."""


class CancelledById(Aborted, GracefulHTTPError):  # type: ignore[misc,unused-ignore]
    """The request was cancelled by its id; vLLM's handlers turn it into a 400 (clients retry 408 and 409)."""

    def __init__(self) -> None:
        GracefulHTTPError.__init__(self, "The request was cancelled by its id.", HTTPStatus.BAD_REQUEST)


class AbortedByEngine(Aborted, GracefulHTTPError):  # type: ignore[misc,unused-ignore]
    """The engine itself aborted this request."""

    def __init__(self) -> None:
        GracefulHTTPError.__init__(self, "The engine gave this request up.", HTTPStatus.SERVICE_UNAVAILABLE)


class EngineProxy:
    """Replaces the EngineClient of vLLM's serving objects, because they must not reach AsyncLLM directly. Not a
    subclass: that abstract class grows with every release."""

    def __init__(self, llm: Any, clock: Clock, running: RunningRequests, check_params: Callable[[Any], None]) -> None:
        """`check_params` raises vLLM's error about wrong sampling parameters."""
        self._llm = llm
        self.check_params = check_params
        self._clock = clock
        self._running = running
        self._endings = FinalOutputSplitter(llm.vllm_config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Replaces AsyncLLM.check_admission because the gate admits requests, before vLLM calls this."""

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        """As AsyncLLM.generate; nothing runs before the first iteration, but bad parameters are refused at once, while
        the refusal can still be an HTTP status."""
        if (submissions := CAPTURE.get()) is not None:
            submissions.append(Submission(prompt, sampling_params, request_id, options))
        else:
            self.check_params(sampling_params)
        stats = CURRENT_STATS.get()
        if stats is not None and stats.id is None:
            stats.id = request_id
        return self._run(self._llm.generate, prompt, sampling_params, request_id, options, asyncio.current_task())

    def encode(self, prompt: Any, pooling_params: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        """As AsyncLLM.encode."""
        return self._run(self._llm.encode, prompt, pooling_params, request_id, options, asyncio.current_task())

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """As AsyncLLM.abort, which only vLLM's own endpoint calls here: its contract defines how such a stream ends."""
        ids = (request_id,) if isinstance(request_id, str) else tuple(request_id)
        for run in self._running.submissions:
            # An internal id is the request's id with a suffix.
            if any(one == run.request_id or (internal and one.startswith(f"{run.request_id}-")) for one in ids):
                run.is_aborted = True
        await self._llm.abort(request_id, internal=internal)

    async def _run(
        self,
        method: Callable[..., Any],
        prompt: Any,
        params: Any,
        request_id: str,
        options: dict[str, Any],
        task: asyncio.Task[Any] | None,
    ) -> AsyncIterator[Any]:
        stats = CURRENT_STATS.get()
        self._raise_if_over(stats, task)
        run = RunningSubmission(request_id, stats, task)
        self._running.submissions.append(run)
        counter = _TokenCounter(stats, self._clock, params)
        in_chunks = False
        if stats is not None:
            stats.submitted = True
            in_chunks = stats.endpoint in _ENDS_IN_A_CHUNK and params.output_kind == RequestOutputKind.DELTA
        # Nested deeply, because one more generator would cost time for each output.
        try:
            async with aclosing(method(prompt, params, request_id, **options)) as outputs:
                async for output in outputs:
                    choices = output.outputs if isinstance(output.outputs, list) else ()
                    counter.add(output, choices)
                    reasons = {choice.finish_reason for choice in choices}
                    if "abort" in reasons:
                        self._on_abort(run)
                    elif "error" in reasons and getattr(params, "structured_outputs", None) is not None:
                        raise GracefulHTTPError(error_mapping.GRAMMAR_DEAD_END, HTTPStatus.BAD_REQUEST)
                    for part in self._endings.split(output) if in_chunks else (output,):
                        yield part
        except (EngineDeadError, EngineGenerateError) as error:
            # Some of vLLM's handlers end such a stream with an event of their own and a complete response.
            if stats is not None:
                stats.end(Cause.ENGINE_FAILED)
                stats.is_fatal = isinstance(error, EngineKilledByRequest | EngineGenerateError)
            raise
        finally:
            self._running.submissions.remove(run)

    def _raise_if_over(self, stats: RequestStats | None, task: asyncio.Task[Any] | None) -> None:
        """Raise if the request ended before this submission: while it was rendered, or between two of its turns."""
        if stats is None:
            return
        if stats.cause is Cause.CANCELLED:
            raise CancelledById
        if stats.cause in _BROKEN_OFF:
            in_background = task is not None and self._running.is_background_task(task)
            if stats.cause is not Cause.DISCONNECTED or not in_background:
                raise asyncio.CancelledError

    @staticmethod
    def _on_abort(run: RunningSubmission) -> None:
        """Raise the error that an aborted request becomes, unless its endpoint ends such a stream well."""
        stats = run.stats
        if run.is_aborted and stats is not None and stats.endpoint in _ENDS_ABORTED:
            stats.end(Cause.CANCELLED)
            return
        raise CancelledById if stats is not None and stats.cause is Cause.CANCELLED else AbortedByEngine


class _TokenCounter:
    """Adds one submission's tokens to the request's stats, whether its outputs are deltas or cumulative."""

    def __init__(self, stats: RequestStats | None, clock: Clock, params: Any) -> None:
        self._stats = stats
        self._clock = clock
        self._kind = params.output_kind
        self._counted: dict[int, int] = {}
        self._is_prompt_counted = False

    def add(self, output: Any, choices: Iterable[Any]) -> None:
        if self._stats is None:
            return
        if not self._is_prompt_counted and output.prompt_token_ids is not None:
            self._is_prompt_counted = True
            self._stats.prompt_tokens += len(output.prompt_token_ids)
        new = 0
        for choice in choices:
            tokens = len(choice.token_ids)
            new += tokens if self._kind == RequestOutputKind.DELTA else tokens - self._counted.get(choice.index, 0)
            self._counted[choice.index] = tokens
        whole = self._kind == RequestOutputKind.FINAL_ONLY
        self._stats.add_tokens(new, None if whole else self._clock.now())
