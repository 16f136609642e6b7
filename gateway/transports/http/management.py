"""The management app: health, streams by id, models, and an OpenAPI document of Sluice's and vLLM's paths together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from gateway.domain import AppOptions
from gateway.engine.base import EngineSource
from gateway.errors import ClientError, InternalError, NotFound, SluiceError
from gateway.streams.registry import Registry
from gateway.transports.http import docs, paths
from gateway.transports.http.error_response import error_headers
from gateway.transports.http.middleware import EXCHANGE

STREAMS = "/v1/streams"


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
        docs.check_enabled(options())
        return JSONResponse(_document(app, engine_schema(), options().root_path))

    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    docs.add(app, options)
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
