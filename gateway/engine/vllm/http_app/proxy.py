"""vLLM's own HTTP app, and the proxy that it runs on.

The app answers every path that we do not serve ourselves. It thinks that the proxy is its engine client; the proxy
forwards everything to the real one, counts tokens for the request at hand, and makes sure that an aborted request
is an error and never a good end.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from vllm.exceptions import GracefulHTTPError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from gateway.clock import Clock
from gateway.domain import Cause, Endpoint, RequestStats
from gateway.engine.base import CURRENT_STATS, ASGIApp, Route
from gateway.engine.vllm import error_mapping, media_connector
from gateway.engine.vllm.compat.imports import find
from gateway.engine.vllm.core_client.restartable import DiedOfIt
from gateway.engine.vllm.error_mapping import Aborted
from gateway.engine.vllm.http_app import client_endpoints, stream_errors
from gateway.engine.vllm.output import eligibility
from gateway.engine.vllm.output.final_output import Endings

_BROKEN_OFF = frozenset({Cause.DISCONNECTED, Cause.DEADLINE_EXCEEDED, Cause.SERVER_DRAINING, Cause.REFUSED_DRAINING})
"""Causes that say that nobody waits for an answer any more; one that is complete may have left work of its own."""

_ENDS_ABORTED = frozenset({"/inference/v1/generate"})
"""Where an aborted request ends with that finish reason, by contract. Elsewhere it would hide an abort."""
_ENDS_IN_A_CHUNK = frozenset(Endpoint)
"""Endpoints whose streams tell the end of a choice in a chunk that can have text, too."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What a serving object asked the engine to generate."""

    prompt: Any
    params: Any
    request_id: str
    options: dict[str, Any]


_RENDER_ONLY = ("vllm.entrypoints.scale_out.render.", "vllm.entrypoints.scale_out.derender.")
_NO_ENGINE_WORK = ("/count_tokens", "/cancel", "/render", "/derender", "/abort_requests")
"""Where vLLM keeps what needs no step of the engine, and how the paths of such calls end."""

CAPTURE: ContextVar[list[Submission] | None] = ContextVar("sluice_capture", default=None)
"""Where set, the proxy notes every submission in this list, for the caller that will submit it in its own way."""


class CancelledById(Aborted, GracefulHTTPError):  # type: ignore[misc,unused-ignore]
    """Somebody cancelled this request; vLLM's handlers turn it into a 400 (clients retry 408 and 409)."""

    def __init__(self) -> None:
        GracefulHTTPError.__init__(self, "The request was cancelled by its id.", HTTPStatus.BAD_REQUEST)


class GivenUp(Aborted, GracefulHTTPError):  # type: ignore[misc,unused-ignore]
    """The engine itself aborted this request."""

    def __init__(self) -> None:
        GracefulHTTPError.__init__(self, "The engine gave this request up.", HTTPStatus.SERVICE_UNAVAILABLE)


class Ungrammatical(GracefulHTTPError):  # type: ignore[misc,unused-ignore]
    """The engine could not follow the request's grammar."""

    def __init__(self) -> None:
        super().__init__(error_mapping.UNGRAMMATICAL, HTTPStatus.BAD_REQUEST)


@dataclass(slots=True, eq=False)
class _Running:
    request_id: str
    stats: RequestStats | None
    task: asyncio.Task[Any] | None
    """vLLM's handler that asked for it."""
    aborted: bool = False
    """Whether vLLM's own endpoint was asked to abort it."""

    def answers_to(self, request_id: str) -> bool:
        """Whether that is its id; vLLM appends `-0` or `_0` to the id of a sub-request."""
        return self.request_id == request_id or self.request_id.rstrip("0123456789")[:-1] == request_id


@dataclass(slots=True)
class Engagements:
    """What the proxy runs at the moment, so that it can be found and cancelled by id."""

    running: list[_Running] = field(default_factory=list)
    in_background: Callable[[asyncio.Task[Any]], bool] = field(default=lambda _: False)
    """Whether a task goes on without the client who has asked for it."""

    def leave(self, stats: RequestStats | None) -> list[str]:
        """End what still runs for a request that has been broken off; its ids in the engine, where it is to be aborted:
        the tasks that wait for it may be long in ending, and the sequences are wanted now."""
        if stats is None:
            return []
        left = stats.cause is Cause.DISCONNECTED
        ended = []
        for run in self.running:
            if run.stats is not stats or (left and run.task is not None and self.in_background(run.task)):
                continue
            if run.task is not None:
                run.task.cancel()
            ended.append(run.request_id)
        return ended

    def of(self, request_id: str, owner: str | None) -> list[_Running]:
        """Everything under that id."""
        return [
            run
            for run in self.running
            if run.stats is not None and run.stats.caller.owner == owner and run.answers_to(request_id)
        ]

    def has(self, request_id: str) -> bool:
        """Whether there is anything under that id."""
        return any(run.answers_to(request_id) for run in self.running)


class EngineProxy:
    """Stands where vLLM wants an EngineClient. Not a subclass: that ABC grows with every release."""

    def __init__(self, llm: Any, clock: Clock, engagements: Engagements, verify: Callable[[Any], None]) -> None:
        """`verify` raises what vLLM has against sampling parameters."""
        self._llm = llm
        self.verify = verify
        self._clock = clock
        self._engagements = engagements
        self._endings = Endings(llm.vllm_config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        """Admission is the gate's business, and it has decided before this is asked."""

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        """As AsyncLLM.generate; nothing runs before the first iteration, but bad parameters are refused at once, while
        they can still be an HTTP status."""
        if (notes := CAPTURE.get()) is not None:
            notes.append(Submission(prompt, sampling_params, request_id, options))
        else:
            self.verify(sampling_params)
        stats = CURRENT_STATS.get()
        if stats is not None and stats.id is None:
            stats.id = request_id
        task = asyncio.current_task()
        return self._counted(self._llm.generate, prompt, sampling_params, request_id, options, task)

    def encode(self, prompt: Any, pooling_params: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        """As AsyncLLM.encode."""
        task = asyncio.current_task()
        return self._counted(self._llm.encode, prompt, pooling_params, request_id, options, task)

    async def abort(self, request_id: str | Iterable[str], internal: bool = False) -> None:
        """As AsyncLLM.abort. vLLM's endpoint for it promises how a stream ends that it has aborted."""
        ids = (request_id,) if isinstance(request_id, str) else tuple(request_id)
        for run in self._engagements.running:
            # Internal ids are the others with something behind them.
            if any(one == run.request_id or (internal and one.startswith(f"{run.request_id}-")) for one in ids):
                run.aborted = True
        await self._llm.abort(request_id, internal=internal)

    async def _counted(
        self,
        method: Callable[..., Any],
        prompt: Any,
        params: Any,
        request_id: str,
        options: dict[str, Any],
        task: asyncio.Task[Any] | None,
    ) -> AsyncIterator[Any]:
        stats = CURRENT_STATS.get()
        if stats is not None and stats.cause is Cause.CANCELLED:
            # Between two of its turns: what has been cancelled asks for no more.
            raise CancelledById
        if stats is not None and stats.cause in _BROKEN_OFF:
            goes_on = task is not None and self._engagements.in_background(task)
            if stats.cause is not Cause.DISCONNECTED or not goes_on:
                # Its request was broken off while it was being rendered.
                raise asyncio.CancelledError
        run = _Running(request_id, stats, task)
        self._engagements.running.append(run)
        count = _Count(stats, self._clock, params)
        in_chunks = False
        if stats is not None:
            stats.submitted = True
            in_chunks = stats.endpoint in _ENDS_IN_A_CHUNK and params.output_kind == RequestOutputKind.DELTA
        try:
            async with aclosing(method(prompt, params, request_id, **options)) as outputs:
                async for output in outputs:
                    choices = output.outputs if isinstance(output.outputs, list) else ()
                    count.see(output, choices)
                    if any(choice.finish_reason == "abort" for choice in choices):
                        if run.aborted and stats is not None and stats.endpoint in _ENDS_ABORTED:
                            stats.cause = Cause.CANCELLED
                            yield output
                            continue
                        cancelled = stats is not None and stats.cause is Cause.CANCELLED
                        raise CancelledById if cancelled else GivenUp
                    if getattr(params, "structured_outputs", None) is not None and any(
                        choice.finish_reason == "error" for choice in choices
                    ):
                        raise Ungrammatical
                    for part in self._endings.apart(output) if in_chunks else (output,):
                        yield part
        except (EngineDeadError, EngineGenerateError) as error:
            # Some of vLLM's handlers end such a stream with an event of their own and a complete response.
            if stats is not None:
                stats.cause = Cause.ENGINE_FAILED
                stats.is_fatal = isinstance(error, DiedOfIt | EngineGenerateError)
            raise
        finally:
            self._engagements.running.remove(run)


class _Count:
    """Adds one submission's tokens to the tally, whether its outputs are deltas or everything so far."""

    def __init__(self, stats: RequestStats | None, clock: Clock, params: Any) -> None:
        self._stats = stats
        self._clock = clock
        self._kind = params.output_kind
        self._seen: dict[int, int] = {}
        self._prompt_due = True

    def see(self, output: Any, choices: Iterable[Any]) -> None:
        if self._stats is None:
            return
        if self._prompt_due and output.prompt_token_ids is not None:
            self._prompt_due = False
            self._stats.prompt_tokens += len(output.prompt_token_ids)
        new = 0
        for choice in choices:
            tokens = len(choice.token_ids)
            new += tokens if self._kind == RequestOutputKind.DELTA else tokens - self._seen.get(choice.index, 0)
            self._seen[choice.index] = tokens
        whole = self._kind == RequestOutputKind.FINAL_ONLY
        self._stats.generated(new, None if whole else self._clock.now())


def owning(app: ASGIApp, engagements: Engagements, abort: Callable[[list[str]], object]) -> ASGIApp:
    """`app`, whose work in the engine ends with it when it is broken off: most of vLLM's handlers run in a task of
    their own, which does not end when the one that waits for it is cancelled. `abort` is told of ids in the engine."""

    async def http(scope: Any, receive: Any, send: Any) -> None:
        media_connector.begin()
        try:
            await app(scope, receive, send)
        except BaseException:
            if ended := engagements.leave(CURRENT_STATS.get()):
                abort(ended)
            raise

    return http


async def build(proxy: EngineProxy, args: Any, supported_tasks: Any) -> Any:
    """vLLM's FastAPI app on `proxy`, with our overrides of the stream generators. Its lifespan is the caller's."""
    args = copy.copy(args)
    # Browsers are answered at our own edge; twice the same header is an error to them.
    args.allowed_origins = []
    app = find("build_app")(args, supported_tasks, proxy.model_config)
    await find("init_app_state")(proxy, app.state, args, supported_tasks)
    # Our `/metrics` has its numbers, too. Its own takes any path that begins so, past the rules of proxies.
    app.router.routes[:] = [one for one in app.router.routes if getattr(one, "path", None) != "/metrics"]
    # Its engine-error handler looks for the server it would stop; ours decides that elsewhere.
    app.state.server = SimpleNamespace(should_exit=False)
    # Its list of allowed origins is empty, and a middleware without any only says `Vary: Origin` a second time.
    app.user_middleware[:] = [one for one in app.user_middleware if one.cls.__name__ != "CORSMiddleware"]
    # SageMaker's part has had it built already.
    app.middleware_stack = None
    eligibility.adopt(app.state)
    stream_errors.adopt(app.state)
    return app


def route(app: Any, method: str, path: str) -> Route:
    """What vLLM's app has at that path.

    vLLM keeps its bookkeeping endpoints (tokenize, health) in `vllm.entrypoints.serve`; whatever is routed for clients
    from elsewhere generates, embeds or scores. SageMaker's `/invocations` is the exception, it dispatches, and so are
    calls that only count, render or cancel: somebody who wants to cancel must not wait for a permit.
    """
    found = Route.UNKNOWN
    for known in _matching(app, path):
        methods = getattr(known, "methods", None)
        if methods is None or method not in methods:
            found = Route.WRONG_METHOD
            continue
        home = getattr(getattr(known, "endpoint", None), "__module__", "")
        if not client_endpoints.is_for_clients(home, str(known.path)):
            return Route.OPERATOR
        generates = home.startswith("vllm.") and not home.startswith(("vllm.entrypoints.serve.", *_RENDER_ONLY))
        generates = generates and not str(known.path).endswith(_NO_ENGINE_WORK)
        # SageMaker's library wraps the handler in one of its own.
        works = method == "POST" and (generates or known.path == "/invocations")
        return Route.WORKS if works else Route.LIGHT
    return found


def methods(app: Any, path: str) -> frozenset[str]:
    """The methods that vLLM's app takes at that path."""
    return frozenset().union(*(getattr(known, "methods", None) or () for known in _matching(app, path)))


def template(app: Any, path: str) -> str:
    """The path as vLLM's app has declared it; "other" if it has not."""
    return next((str(known.path) for known in _matching(app, path)), "other")


def _matching(app: Any, path: str) -> Iterator[Any]:
    for known in app.routes:
        pattern = getattr(known, "path_regex", None)
        if pattern is not None and pattern.fullmatch(path):
            yield known


__all__ = ["CAPTURE", "Engagements", "EngineProxy", "Submission", "build", "methods", "owning", "route", "template"]
