"""An app for the scripted engine, of paths whose responses have line separators."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from gateway.engine.base import Route
from tests.support.harness import HttpHarness

SEPARATORS = "a\u2028b\u2029c\x85d"


def mounted(harness: HttpHarness) -> HttpHarness:
    """Give the engine an app of its own, made as vLLM's is."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> Any:
        return JSONResponse({"data": [SEPARATORS]})

    @app.get("/lines")
    async def lines() -> Any:
        return StreamingResponse(iter([f"data: {SEPARATORS}\n\n", "data: 2\n\n"]), media_type="text/event-stream")

    @app.post("/v1/messages")
    @app.post("/v1/messages/count_tokens")
    async def messages() -> Any:
        return JSONResponse({})

    harness.engine.http = app
    harness.engine.routes = {
        ("GET", "/v1/models"): Route.LIGHT,
        ("GET", "/lines"): Route.LIGHT,
        ("POST", "/v1/messages"): Route.USES_ENGINE,
        ("POST", "/v1/messages/count_tokens"): Route.USES_ENGINE,
        ("POST", "/tokenize"): Route.LIGHT,
    }
    return harness
