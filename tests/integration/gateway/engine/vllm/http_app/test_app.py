"""What the routes of an app are for. The app here is Starlette's, with handlers that seem to be vLLM's."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route as AppRoute

from gateway.engine.base import Route
from gateway.engine.vllm.http_app import app


def handler(module: str) -> Any:
    async def handle(request: Any) -> Any:
        raise AssertionError

    handle.__module__ = module
    return handle


RESPONSES, POOLING = "vllm.entrypoints.openai.responses.api_router", "vllm.entrypoints.pooling.embed.api_router"
SERVE = "vllm.entrypoints.serve.tokenize.api_router"
RENDER = "vllm.entrypoints.scale_out.render.api_router"
APP = Starlette(
    routes=[
        AppRoute("/v1/embeddings", handler(POOLING), methods=["POST"]),
        AppRoute("/v1/responses/{response_id}", handler(RESPONSES), methods=["GET"]),
        AppRoute("/v1/responses/{response_id}/cancel", handler(RESPONSES), methods=["POST"]),
        AppRoute("/tokenize", handler(SERVE), methods=["POST"]),
        AppRoute("/v1/completions/render", handler(RENDER), methods=["POST"]),
        AppRoute("/invocations", handler("sagemaker.wrapper"), methods=["POST"]),
        AppRoute("/sleep", handler("vllm.entrypoints.serve.sleep.api_router"), methods=["POST"]),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/embeddings", Route.USES_ENGINE),
        ("POST", "/invocations", Route.USES_ENGINE),
        ("GET", "/v1/embeddings", Route.WRONG_METHOD),
        ("GET", "/v1/responses/resp_1", Route.LIGHT),
        ("POST", "/v1/responses/resp_1/cancel", Route.LIGHT),
        ("POST", "/tokenize", Route.LIGHT),
        ("POST", "/v1/completions/render", Route.LIGHT),
        ("POST", "/sleep", Route.OPERATOR),
        ("POST", "/nothing", Route.UNKNOWN),
    ],
)
def test_the_kind_of_a_route_decides_whether_it_needs_a_permit(method: str, path: str, kind: Route) -> None:
    assert app.classify(APP, method, path) is kind


@pytest.mark.parametrize(
    ("path", "methods", "template"),
    [
        ("/v1/embeddings", {"POST"}, "/v1/embeddings"),
        ("/v1/responses/resp_1", {"GET", "HEAD"}, "/v1/responses/{response_id}"),
        ("/nothing", set(), "other"),
    ],
)
def test_methods_and_template_of_a_path(path: str, methods: set[str], template: str) -> None:
    assert app.allowed_methods(APP, path) == methods
    assert app.path_template(APP, path) == template


@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("vllm.entrypoints.new_thing.api_router", "/new_thing"),
        ("vllm.entrypoints.serve.new_thing.api_router", "/new_thing"),
        ("vllm.entrypoints.openai.new_thing.api_router", "/v1/new_thing"),
        ("vllm.entrypoints.poolingextra", "/pooling2"),
        ("somebodys.plugin", "/v1/embeddings"),
        ("", "/static"),
    ],
)
def test_unlisted_endpoints_are_for_operators(module: str, path: str) -> None:
    assert not app.is_client_endpoint(module, path)
