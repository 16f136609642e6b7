from __future__ import annotations

import pytest

from gateway.engine.vllm.http_app.app import is_client_endpoint


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
    assert not is_client_endpoint(module, path)
