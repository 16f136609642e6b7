"""vLLM's own FastAPI app, built on the engine proxy, and what its routes are for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from vllm.entrypoints.launchers import app as vllm_app
from vllm.entrypoints.launchers.api_server.app_state import init_app_state

from gateway.asgi import ASGIApp
from gateway.engine.base import CURRENT_STATS, Route
from gateway.engine.vllm import media_connector
from gateway.engine.vllm.http_app import stream_errors
from gateway.engine.vllm.http_app.proxy import EngineProxy
from gateway.engine.vllm.http_app.running_requests import RunningRequests
from gateway.engine.vllm.output import eligibility

# The endpoints for clients. All others run the server (scale, pause, put to sleep, exchange weights, profile, load
# adapters, abort any request) and are for its operators. The list names the client endpoints, by the modules of their
# handlers, so that an endpoint that is new in a later vLLM or comes with a plug-in counts as an operator's until it is
# listed here.
# All routes of these modules and of those below them.
_CLIENT_MODULES = (
    "vllm.entrypoints.anthropic",
    "vllm.entrypoints.cohere",
    "vllm.entrypoints.generate.generative_scoring",
    "vllm.entrypoints.generate.structured_decisions",
    "vllm.entrypoints.openai.chat_completion",
    "vllm.entrypoints.openai.completion",
    "vllm.entrypoints.openai.models",
    "vllm.entrypoints.openai.responses",
    "vllm.entrypoints.pooling",
    "vllm.entrypoints.scale_out.derender",
    "vllm.entrypoints.scale_out.render",
    "vllm.entrypoints.serve.instrumentator.health",
    "vllm.entrypoints.serve.sagemaker",
    "vllm.entrypoints.serve.tokenize",
    "vllm.entrypoints.speech_to_text",
    # Pages of documentation.
    "fastapi.applications",
    # Answers 403 in place of the endpoints that `--enable-scale-out` opens.
    "vllm.entrypoints.scale_out.factories",
)
# Single routes of modules that serve both, or that wrap vLLM's handlers.
_CLIENT_PATHS = frozenset({"/inference/v1/generate", "/invocations", "/load", "/version"})

# Where vLLM keeps handlers that need no step of the engine, and how the paths of such calls end.
_RENDER_ONLY = ("vllm.entrypoints.scale_out.render.", "vllm.entrypoints.scale_out.derender.")
_NO_ENGINE_WORK = ("/count_tokens", "/cancel", "/render", "/derender", "/abort_requests")


async def build_app(proxy: EngineProxy, args: Any, supported_tasks: Any) -> Any:
    """vLLM's FastAPI app on `proxy`, with our replacements of its stream generators. The caller runs its lifespan."""
    args = copy.copy(args)
    # CORS headers are written by our own middleware; the same header twice is an error to browsers.
    args.allowed_origins = []
    app = vllm_app.build_app(args, supported_tasks, proxy.model_config)
    await init_app_state(proxy, app.state, args, supported_tasks)
    # Our `/metrics` includes its metrics. Its own route matches any path with that prefix, past the rules of proxies.
    app.router.routes[:] = [one for one in app.router.routes if getattr(one, "path", None) != "/metrics"]
    # Its handler of engine errors sets this flag on the server to stop it; here the supervisor decides.
    app.state.server = SimpleNamespace(should_exit=False)
    # Without allowed origins this middleware only adds a second `Vary: Origin`.
    app.user_middleware[:] = [one for one in app.user_middleware if one.cls.__name__ != "CORSMiddleware"]
    # SageMaker's part has had the stack of middleware built already.
    app.middleware_stack = None
    eligibility.install(app.state)
    stream_errors.install_stream_errors(app.state)
    return app


def abort_on_exit(app: ASGIApp, running: RunningRequests, abort: Callable[[list[str]], object]) -> ASGIApp:
    """`app`, whose work in the engine ends when the app's call is broken off: most of vLLM's handlers run in a task of
    their own, which survives the cancellation of the task that awaits it. `abort` takes ids in the engine."""

    async def http(scope: Any, receive: Any, send: Any) -> None:
        media_connector.start_budget()
        try:
            await app(scope, receive, send)
        except BaseException:
            if ids := running.cancel_tasks(CURRENT_STATS.get()):
                abort(ids)
            raise

    return http


def is_client_endpoint(module: str, path: str) -> bool:
    """Whether clients may use the endpoint at `path`, whose handler is in `module`."""
    return path in _CLIENT_PATHS or any(module == one or module.startswith(one + ".") for one in _CLIENT_MODULES)


def classify(app: Any, method: str, path: str) -> Route:
    """The kind of vLLM's route for that method and path.

    vLLM keeps its endpoints for bookkeeping (tokenize, health) in `vllm.entrypoints.serve`; every other client endpoint
    generates, embeds or scores. The exceptions: SageMaker's `/invocations`, which dispatches to such endpoints, and
    calls that only count, render or cancel; a call that cancels must not wait for a permit.
    """
    found = Route.UNKNOWN
    for known in _matching(app, path):
        methods = getattr(known, "methods", None)
        if methods is None or method not in methods:
            found = Route.WRONG_METHOD
            continue
        module = getattr(getattr(known, "endpoint", None), "__module__", "")
        if not is_client_endpoint(module, str(known.path)):
            return Route.OPERATOR
        generates = module.startswith("vllm.") and not module.startswith(("vllm.entrypoints.serve.", *_RENDER_ONLY))
        generates = generates and not str(known.path).endswith(_NO_ENGINE_WORK)
        # SageMaker's library wraps the handler in one of its own.
        uses_engine = method == "POST" and (generates or known.path == "/invocations")
        return Route.USES_ENGINE if uses_engine else Route.LIGHT
    return found


def allowed_methods(app: Any, path: str) -> frozenset[str]:
    """The methods of vLLM's routes for that path."""
    return frozenset().union(*(getattr(known, "methods", None) or () for known in _matching(app, path)))


def path_template(app: Any, path: str) -> str:
    """The path of vLLM's route, with its parameters by name; "other" without a route."""
    return next((str(known.path) for known in _matching(app, path)), "other")


def _matching(app: Any, path: str) -> Iterator[Any]:
    for known in app.routes:
        pattern = getattr(known, "path_regex", None)
        if pattern is not None and pattern.fullmatch(path):
            yield known
