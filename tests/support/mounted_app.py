"""An app for the scripted engine, as vLLM's."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from gateway.engine.base import CURRENT_STATS, Route
from tests.support.harness import HttpHarness


def with_mounted(harness: HttpHarness) -> HttpHarness:
    """Give the engine an app of its own, made as vLLM's is."""
    app = FastAPI()

    @app.post("/v1/embeddings")
    async def embeddings(body: dict[str, Any]) -> JSONResponse:
        stats = CURRENT_STATS.get()
        assert stats is not None
        stats.prompt_tokens = 5
        return JSONResponse({"slots": harness.gate.slots_taken, **body})

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"slots": harness.gate.slots_taken}

    harness.engine.http = app
    harness.engine.routes = {("POST", "/v1/embeddings"): Route.USES_ENGINE, ("GET", "/v1/models"): Route.LIGHT}
    return harness


__all__ = ["with_mounted"]
