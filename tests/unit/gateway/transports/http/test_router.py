"""The router: which app serves a path, and refusals of the server as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.domain import Cause
from gateway.engine.supervisor import Phase
from tests.support.harness import CHAT, COMPLETION, HttpHarness, key_line
from tests.support.mounted_app import with_mounted
from tests.support.time import in_virtual_time, settle

ANN = {"Authorization": "Bearer sk-a"}
BOB = {"Authorization": "Bearer sk-b"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(key_line("ann", "sk-a") + key_line("bob", "sk-b"), encoding="utf-8")
    return path


@in_virtual_time
async def test_while_the_engine_starts_every_response_has_retry_after() -> None:
    harness = HttpHarness(ready=False)
    for method, path in (("POST", CHAT), ("POST", COMPLETION), ("GET", "/v1/models")):
        answer = await harness.request(method, path, body=b"{}").finish()

        assert (answer.status, answer.headers["retry-after"]) == (503, "30")
        assert answer.error()["code"] == "server_starting"
        assert answer.error()["retryable"] is True


@in_virtual_time
async def test_while_the_engine_is_down_requests_are_refused_with_its_code() -> None:
    harness = HttpHarness()
    harness.supervisor.phase = Phase.FAILED
    answer = await harness.post().finish()

    assert (answer.status, answer.error()["code"]) == (503, "engine_failed")
    assert int(answer.headers["retry-after"]) >= 1


@in_virtual_time
async def test_a_full_server_responds_with_retry_after() -> None:
    harness = HttpHarness(max_concurrent=1, max_waiting=1)
    held = await harness.gate.enter()
    waiting = harness.post()
    await settle()
    answer = await harness.post().finish()

    assert (answer.status, answer.error()["code"], answer.error()["type"]) == (503, "overloaded", "overloaded_error")
    assert answer.headers["retry-after"] == "2"
    assert harness.instrumentation.rejections == ["queue_full"]
    assert harness.instrumentation.endings == [(Cause.OVERLOADED, 0)]

    waiting.leave()
    await waiting.finish()
    held.release()


@in_virtual_time
async def test_a_request_that_waited_too_long_is_a_503() -> None:
    harness = HttpHarness(max_concurrent=1, queue_timeout_s=5)
    held = await harness.gate.enter()
    answer = await harness.post().finish()

    assert (answer.status, answer.error()["code"]) == (503, "overloaded")
    assert harness.instrumentation.rejections == ["queue_timeout"]

    held.release()

    assert harness.at_rest


@in_virtual_time
async def test_more_choices_than_slots_are_a_400_about_n() -> None:
    answer = await HttpHarness(max_concurrent=2).post(n=3).finish()

    assert (answer.status, answer.error()["param"]) == (400, "n")


@pytest.mark.parametrize("path", ["/nothing", "/v1/streams", "/v1/streams/a/b", CHAT + "/x"])
@in_virtual_time
async def test_an_unknown_path_is_a_404_in_openais_shape(path: str) -> None:
    answer = await HttpHarness().request("GET", path).finish()

    assert answer.status == 404
    assert answer.error() == {
        "message": f"There is nothing at {path}.",
        "type": "not_found_error",
        "code": "not_found",
        "param": None,
        "retryable": False,
        "resumable": False,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", CHAT),
        ("GET", COMPLETION),
        ("POST", "/livez"),
        ("PUT", "/v1/streams/x"),
        ("GET", "/v1/streams/x/cancel"),
        ("GET", "/v1/embeddings"),
    ],
)
@in_virtual_time
async def test_a_wrong_method_is_a_405_in_openais_shape(method: str, path: str) -> None:
    answer = await with_mounted(HttpHarness()).request(method, path).finish()

    assert (answer.status, answer.error()["code"]) == (405, "method_not_allowed")
    assert method in answer.error()["message"]


@in_virtual_time
async def test_a_body_too_large_is_a_413_on_every_path() -> None:
    """vLLM's app reads bodies through FastAPI, which takes any error there for a body that cannot be parsed: 400."""
    harness = with_mounted(HttpHarness(max_body_bytes=100))
    headers = {"Content-Type": "application/json"}
    ours = await harness.request("POST", CHAT, body=[b"x" * 60, b"x" * 60]).finish()
    theirs = await harness.request("POST", "/v1/embeddings", headers=headers, body=[b"x" * 60, b"x" * 60]).finish()

    assert [answer.status for answer in (ours, theirs)] == [413, 413]
    assert harness.at_rest


@pytest.mark.parametrize("path", ["/unknown/1", "/v1/made-up"])
@in_virtual_time
async def test_unknown_paths_share_one_metric_label(keys_file: Path, path: str) -> None:
    """Every label value stays in memory for ever, and paths are the client's invention. That holds also for clients
    without a key, with a body too large, or who come before the engine is up."""
    up, locked, early = HttpHarness(), HttpHarness(keys_file=keys_file), HttpHarness(ready=False)
    for harness in (up, locked, early):
        await harness.request("GET", path).finish()
    await up.request("POST", path, headers={"Content-Length": str(2**30)}).finish()

    assert {label for harness in (up, locked, early) for label, _ in harness.instrumentation.labels} == {"other"}


@in_virtual_time
async def test_a_websocket_is_refused_before_its_handshake() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await HttpHarness().app({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send)

    assert sent == [{"type": "websocket.close", "code": 1008}]


@in_virtual_time
async def test_an_engine_that_does_not_serve_affects_readyz_and_not_livez() -> None:
    harness = HttpHarness()
    harness.engine.unready_reason = "the engine has not answered for 7 s and does not compute"
    ready = await harness.request("GET", "/readyz").finish()

    assert ready.status == 503
    assert "has not answered for 7 s" in ready.error()["message"]
    assert (await harness.request("GET", "/livez").finish()).status == 200

    harness.engine.unready_reason = None

    assert (await harness.request("GET", "/readyz").finish()).status == 200
