"""The management app: health, streams by id, models, and an OpenAPI document of Sluice's and vLLM's paths together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from gateway.domain import AppOptions
from gateway.engine.base import EngineSource
from gateway.errors import ClientError, InternalError, NotFound, SluiceError
from gateway.streams.registry import Registry
from gateway.transports.http import paths
from gateway.transports.http.error_response import error_headers
from gateway.transports.http.middleware import EXCHANGE

STREAMS = "/v1/streams"

_DOCS_FOLDER = Path(__file__).parent / "swagger_ui"
_DOCS_TYPES = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
# Limited, because the file names stay the same when Swagger UI is updated.
_DOCS_CACHE = {"Cache-Control": "public, max-age=3600"}


def make_management_app(
    *,
    registry: Registry,
    engines: EngineSource,
    health: APIRouter,
    engine_schema: Callable[[], dict[str, Any]],
    options: Callable[[], AppOptions],
    lifespan: Any,
    version: str,
) -> FastAPI:
    """The app. `engine_schema` returns vLLM's OpenAPI document, or {} until the first engine has started."""
    app = FastAPI(title="Sluice", version=version, lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    app.include_router(health)
    app.include_router(_streams(registry))
    app.include_router(_models(registry, engines, options, version))
    app.add_exception_handler(SluiceError, _sluice_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)

    # FastAPI runs a plain function in a thread: vLLM's document takes a second, which must not delay streams.
    def openapi() -> JSONResponse:
        _check_docs_enabled(options())
        return JSONResponse(_document(app, engine_schema(), options().root_path))

    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    _add_docs(app, options)
    return app


def _models(registry: Registry, engines: EngineSource, options: Callable[[], AppOptions], version: str) -> APIRouter:
    router = APIRouter()

    async def model(model_id: str) -> JSONResponse:
        """One of the models of `/v1/models`, by its name."""
        card = await engines.engine.model_card(model_id)
        if card is None:
            raise NotFound(f"The model {model_id!r} does not exist.", param="model")
        return JSONResponse(card)

    async def load() -> JSONResponse:
        """Requests in work or waiting; 0 without vLLM's `--enable-server-load-tracking`."""
        return JSONResponse({"server_load": registry.active if options().counts_load else 0})

    async def about(request: Request) -> JSONResponse:
        """Name and version of this server, and the base URLs for clients."""
        base = paths.base_url(request.scope, request.headers, options().root_path)
        urls = {"openai_base_url": base + "/v1", "anthropic_base_url": base, "docs": base + "/docs"}
        return JSONResponse({"name": "Sluice", "version": version, **urls})

    router.add_api_route("/v1/models/{model_id:path}", model, methods=["GET"], summary="One model")
    router.add_api_route("/load", load, methods=["GET"], summary="How many requests there are")
    router.add_api_route("/", about, methods=["GET"], summary="What this server is")
    return router


def _streams(registry: Registry) -> APIRouter:
    router = APIRouter(prefix=STREAMS, tags=["streams"])

    async def status(stream_id: str, request: Request) -> JSONResponse:
        """Resume or join a resumable stream as Server-Sent Events, after `Last-Event-ID` or `?starting_after=N`; with
        `Accept: application/json`, its status. 204: everything has been read. 410: its retention is over."""
        return JSONResponse(asdict(registry.status(stream_id, request.scope[EXCHANGE].caller)))

    async def cancel(stream_id: str, request: Request) -> JSONResponse:
        """Cancel any live request of yours by the id that it carries; answers with its final status."""
        return JSONResponse(asdict(registry.cancel(stream_id, request.scope[EXCHANGE].caller)))

    router.add_api_route("/{stream_id}", status, methods=["GET"], summary="Resume a stream, or its status")
    router.add_api_route("/{stream_id}", cancel, methods=["DELETE"], summary="Cancel a request")
    router.add_api_route("/{stream_id}/cancel", cancel, methods=["POST"], summary="Cancel a request")
    return router


def _document(app: FastAPI, engine: dict[str, Any], root_path: str) -> dict[str, Any]:
    ours = get_openapi(title=app.title, version=app.version, routes=app.routes)
    shown = {**engine.get("paths", {}), **ours["paths"]}
    theirs = engine.get("components", {}).get("schemas", {})
    schemas = {**theirs, **ours.get("components", {}).get("schemas", {})}
    servers = {"servers": [{"url": root_path}]} if root_path else {}
    return {**ours, **servers, "paths": shown, "components": {"schemas": schemas}}


async def _sluice_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SluiceError)
    return JSONResponse(error.body(), status_code=error.status, headers=error_headers(error))


async def _defect(request: Request, error: Exception) -> JSONResponse:
    """Starlette raises the error again after this response; the middleware logs it then."""
    return await _sluice_error(request, InternalError("The server failed to answer this request."))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return await _sluice_error(request, ClientError(str(error.detail)))


def _check_docs_enabled(options: AppOptions) -> None:
    """Raises NotFound if the documents are turned off."""
    if not options.has_docs:
        raise NotFound("This server does not describe its API (--disable-fastapi-docs).")


def _add_docs(app: FastAPI, options: Callable[[], AppOptions]) -> None:
    """The page at /docs: Swagger UI from this package's files, so that it works without internet access."""

    def page() -> HTMLResponse:
        _check_docs_enabled(options())
        root = options().root_path
        return get_swagger_ui_html(
            openapi_url=root + "/openapi.json",
            title="Sluice",
            swagger_js_url=root + "/docs/swagger-ui-bundle.js",
            swagger_css_url=root + "/docs/swagger-ui.css",
            swagger_favicon_url=root + "/docs/favicon-32x32.png",
            # By default a service on the internet would validate the document.
            swagger_ui_parameters={"validatorUrl": None},
        )

    def file(name: str) -> Response:
        _check_docs_enabled(options())
        if name not in _DOCS_TYPES:
            raise NotFound(f"There is nothing at /docs/{name[:200]}.")
        return Response(_docs_file(name), media_type=_DOCS_TYPES[name], headers=_DOCS_CACHE)

    app.add_api_route("/docs", page, include_in_schema=False)
    app.add_api_route("/docs/{name}", file, include_in_schema=False)


@cache
def _docs_file(name: str) -> bytes:
    return (_DOCS_FOLDER / name).read_bytes()


def make_health_router(
    *,
    unready: Callable[[], SluiceError | None],
    alive: Callable[[], bool],
    metrics: Callable[[], Awaitable[bytes]],
    metrics_type: str,
    version: dict[str, Any],
) -> APIRouter:
    """Liveness, readiness, metrics and version, which bypass admission and authentication. `unready` returns the error
    of a request sent now, None if it would be served."""
    router = APIRouter(tags=["health"])

    @router.get("/livez", summary="200 while the process need not be restarted")
    async def livez() -> Response:
        return JSONResponse({"status": "alive" if alive() else "failed"}, status_code=200 if alive() else 503)

    @router.get("/readyz", summary="200 only when a request sent now would be served")
    @router.get("/health", summary="The same as /readyz")
    async def readyz() -> Response:
        error = unready()
        if error is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": error.code, **error.body()}, status_code=503, headers=error_headers(error))

    @router.get("/metrics", summary="Prometheus metrics: sluice_* and vllm:*")
    async def expose() -> Response:
        return Response(await metrics(), media_type=metrics_type)

    @router.get("/version", summary="Versions of Sluice and its engine")
    async def show_version() -> Response:
        # With vLLM's own key, too, for clients of its server.
        return JSONResponse({**version, "version": version["vllm"]})

    return router
