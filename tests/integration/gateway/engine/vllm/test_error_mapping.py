"""vLLM's refusals as ours: the status and the sentence that it gave, bounded and without its insides."""

from __future__ import annotations

import warnings
from typing import Any

import orjson
import pytest

from gateway.errors import ClientError, InternalError
from tests.support.asgi import Client
from tests.support.time import in_virtual_time


@pytest.fixture(scope="module")
def vllms() -> Any:
    """The modules; importing them imports vLLM, which takes ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gateway.engine.vllm import error_mapping
        from gateway.engine.vllm.http_app import error_normalizer

    return error_normalizer, error_mapping


@pytest.mark.parametrize("status", [400, 403, 405, 409, 410, 413, 415, 422])
def test_a_status_of_vllms_own_is_kept(vllms: Any, status: int) -> None:
    _, error_mapping = vllms
    error = error_mapping.from_info(status, "No. (parameter=seed, value=1)", "seed")

    assert (error.status, error.message, error.param) == (status, "No.", "seed")
    assert isinstance(error, ClientError)


def test_a_sentence_that_quotes_a_megabyte_is_cut(vllms: Any) -> None:
    _, error_mapping = vllms
    error = error_mapping.from_info(400, "x" * 10**6, "y" * 10**6)

    assert len(orjson.dumps(error.body())) < 3000


@pytest.mark.parametrize(
    ("path", "message", "kind", "words"),
    [
        (
            "/v1/load_lora_adapter",
            "Call to add_lora method failed: LoRA rank 64 is greater than max_lora_rank 16.",
            ClientError,
            "LoRA rank 64 is greater than max_lora_rank 16.",
        ),
        ("/v1/load_lora_adapter", "out of memory", InternalError, "failed to answer"),
        ("/v1/responses", "Call to add_lora method failed: x", InternalError, "failed to answer"),
    ],
)
@in_virtual_time
async def test_the_reason_why_an_adapter_is_refused_reaches_the_client(
    vllms: Any, path: str, message: str, kind: type[Exception], words: str
) -> None:
    error_normalizer, _ = vllms
    body = orjson.dumps({"error": {"message": message, "type": "InternalServerError", "code": 500, "param": None}})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": body})

    with pytest.raises(kind, match=words):
        await Client(error_normalizer.normalize_errors(app, lambda: None), "POST", path).finish()
