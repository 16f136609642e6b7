"""Liveness, readiness, metrics and version. They bypass admission and authentication."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from gateway.errors import SluiceError
from gateway.transports.http.error_response import error_headers


def make_router(
    *,
    unready: Callable[[], SluiceError | None],
    alive: Callable[[], bool],
    metrics: Callable[[], Awaitable[bytes]],
    metrics_type: str,
    version: dict[str, Any],
) -> APIRouter:
    """The routes. `unready` returns the error of a request sent now, None if it would be served."""
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
