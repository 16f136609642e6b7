"""Errors of Anthropic's endpoints, in Anthropic's shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.engine.supervisor import Phase
from gateway.errors import (
    Cancelled,
    ClientError,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InternalError,
    NotReady,
    Overloaded,
    SluiceError,
    is_anthropic,
)
from tests.support.asgi import Client
from tests.support.harness import CHAT, HttpHarness, key_line
from tests.support.semantics_app import mounted
from tests.support.time import in_virtual_time

MESSAGES = ["/v1/messages", "/v1/messages/count_tokens"]


def anthropic(client: Client) -> str:
    """The type of an error in Anthropic's shape."""
    body = client.json()
    request_id = client.headers["request-id"]
    error = body["error"]
    assert body == {"type": "error", "error": error, "request_id": request_id}
    assert error.keys() == {"type", "message"}
    assert error["message"]
    assert client.headers["x-request-id"] == request_id
    return str(error["type"])


@pytest.mark.parametrize("path", MESSAGES)
@in_virtual_time
async def test_every_refusal_of_an_anthropic_endpoint_has_anthropics_shape(path: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(key_line("ann", "sk-a"))
    locked = await HttpHarness(keys_file=keys).request("POST", path).finish()
    method = await mounted(HttpHarness()).request("GET", path).finish()
    unknown = await mounted(HttpHarness()).request("POST", path + "/x").finish()
    large = (
        await mounted(HttpHarness(max_body_bytes=10)).request("POST", path, headers={"Content-Length": "11"}).finish()
    )
    headers = await mounted(HttpHarness()).request("POST", path, headers={"X-Request-Timeout": "x"}).finish()
    starting = await HttpHarness(ready=False).request("POST", path).finish()
    down = HttpHarness()
    down.supervisor.phase = Phase.FAILED
    failed = await down.request("POST", path).finish()
    draining = mounted(HttpHarness())
    draining.registry.is_draining = True
    stopping = await draining.request("POST", path).finish()

    assert (locked.status, anthropic(locked)) == (401, "authentication_error")
    assert (method.status, anthropic(method), method.headers["allow"]) == (
        405,
        "invalid_request_error",
        "OPTIONS, POST",
    )
    assert (unknown.status, anthropic(unknown)) == (404, "not_found_error")
    assert (large.status, anthropic(large)) == (413, "request_too_large")
    assert (headers.status, anthropic(headers)) == (400, "invalid_request_error")
    assert (starting.status, anthropic(starting), starting.headers["retry-after"]) == (503, "overloaded_error", "30")
    assert (failed.status, anthropic(failed)) == (503, "api_error")
    assert (stopping.status, anthropic(stopping)) == (503, "overloaded_error")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError("x"), "invalid_request_error"),
        (Cancelled("x"), "invalid_request_error"),
        (DeadlineExceeded("x"), "timeout_error"),
        (Overloaded("x"), "overloaded_error"),
        (NotReady("x"), "overloaded_error"),
        (Draining("x"), "overloaded_error"),
        (EngineFailed("x"), "api_error"),
        (InternalError("x"), "api_error"),
    ],
)
def test_errors_have_anthropics_types(error: SluiceError, kind: str) -> None:
    assert error.anthropic_body("r")["error"] == {"type": kind, "message": "x"}


@in_virtual_time
async def test_answers_of_anthropic_endpoints_have_a_request_id_and_others_have_openais_errors() -> None:
    harness = mounted(HttpHarness())
    good = await harness.request("POST", "/v1/messages", headers={"X-Request-Id": "r-1"}).finish()
    other = await harness.request("GET", "/v1/messagesx").finish()

    assert (good.status, good.headers["request-id"], good.headers["x-request-id"]) == (200, "r-1", "r-1")
    assert "request-id" not in other.headers
    assert other.error()["code"] == "not_found"


def test_only_anthropics_endpoints_are_anthropics() -> None:
    assert [is_anthropic(path) for path in (*MESSAGES, "/v1/messagesx", "/v1", CHAT)] == [True] * 2 + [False] * 3
