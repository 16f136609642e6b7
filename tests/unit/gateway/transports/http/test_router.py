from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from gateway.domain import Cause
from gateway.engine.base import CURRENT_STATS, Route
from gateway.engine.supervisor import Phase
from tests.support.harness import CHAT, COMPLETION, HttpHarness, key_line
from tests.support.time import in_virtual_time, settle

ANN = {"Authorization": "Bearer sk-a"}
BOB = {"Authorization": "Bearer sk-b"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(key_line("ann", "sk-a") + key_line("bob", "sk-b"), encoding="utf-8")
    return path


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


@pytest.mark.parametrize(("method", "suffix"), [("DELETE", ""), ("POST", "/cancel")])
@in_virtual_time
async def test_a_live_stream_is_cancelled_by_the_id_its_client_saw(keys_file: Path, method: str, suffix: str) -> None:
    harness = HttpHarness(keys_file=keys_file)
    stream = harness.post(headers=ANN)
    await settle()
    harness.engine.runs[0].put_text("Hel", 2)
    await settle()
    stream_id = stream.headers["x-stream-id"]
    path = f"/v1/streams/{stream_id}{suffix}"
    answer = await harness.request(method, path, headers=ANN).finish()
    await stream.finish()

    assert answer.status == 200
    assert answer.json() == {
        "id": stream_id,
        "status": "cancelled",
        "resumable": False,
        "events": 4,
        "prompt_tokens": 7,
        "completion_tokens": 2,
    }
    *_, error, done = stream.events()
    assert (error["error"]["code"], error["error"]["retryable"], done) == ("cancelled", False, "[DONE]")
    assert harness.engine.runs[0].aborts == 1
    assert harness.instrumentation.endings == [(Cause.CANCELLED, 2)]
    assert ("/v1/streams/{stream_id}" + suffix, "ok") in harness.instrumentation.labels
    assert harness.at_rest


@pytest.mark.parametrize("stream", [True, False])
@in_virtual_time
async def test_a_request_cancelled_before_its_first_byte_is_a_499_that_is_not_retried(stream: bool) -> None:
    harness = HttpHarness()
    client = harness.post(stream=stream)
    await settle()
    answer = await harness.request("DELETE", f"/v1/streams/{harness.engine.runs[0].id}").finish()
    await client.finish()

    assert answer.status == 200
    assert (client.status, client.error()["code"]) == (499, "cancelled")


@in_virtual_time
async def test_the_stream_of_another_key_looks_like_none(keys_file: Path) -> None:
    harness = HttpHarness(keys_file=keys_file)
    stream = harness.post(headers=ANN)
    await settle()
    stream_id = harness.engine.runs[0].id
    other = await harness.request("DELETE", f"/v1/streams/{stream_id}", headers=BOB).finish()
    unknown = await harness.request("DELETE", "/v1/streams/chatcmpl-2", headers=BOB).finish()

    assert (other.status, unknown.status) == (404, 404)
    assert other.error()["code"] == "not_found"
    assert other.body == unknown.body.replace(b"chatcmpl-2", stream_id.encode())

    harness.engine.runs[0].end("still here")
    await stream.finish()

    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]


@in_virtual_time
async def test_a_stream_that_is_over_is_unknown() -> None:
    harness = HttpHarness()
    stream = harness.post()
    await settle()
    harness.engine.runs[0].end("x")
    await stream.finish()

    stream_id = stream.headers["x-stream-id"]

    assert (await harness.request("DELETE", f"/v1/streams/{stream_id}").finish()).status == 404


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
async def test_vllms_own_paths_pass_the_same_admission() -> None:
    harness = with_mounted(HttpHarness())
    headers = {"Content-Type": "application/json"}
    works = await harness.request("POST", "/v1/embeddings", headers=headers, body=b'{"input": "x"}').finish()
    light = await harness.request("GET", "/v1/models").finish()

    assert works.json() == {"slots": 1, "input": "x"}
    assert light.json() == {"slots": 0}
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)], "only what used the engine counts as a generation"
    assert harness.at_rest


@in_virtual_time
async def test_a_body_too_large_is_a_413_on_every_path() -> None:
    """vLLM's app reads bodies through FastAPI, which takes any error there for a body that cannot be parsed: 400."""
    harness = with_mounted(HttpHarness(max_body_bytes=100))
    headers = {"Content-Type": "application/json"}
    ours = await harness.request("POST", CHAT, body=[b"x" * 60, b"x" * 60]).finish()
    theirs = await harness.request("POST", "/v1/embeddings", headers=headers, body=[b"x" * 60, b"x" * 60]).finish()

    assert [answer.status for answer in (ours, theirs)] == [413, 413]
    assert harness.at_rest


@pytest.mark.parametrize("unfinished", [False, True])
@in_virtual_time
async def test_a_client_that_leaves_while_it_waits_for_vllms_own_path_leaves_the_queue(unfinished: bool) -> None:
    harness = with_mounted(HttpHarness(max_concurrent=1))
    held = await harness.gate.enter()
    client = harness.request("POST", "/v1/embeddings", body=[b'{"input"', b': "x"}'], unfinished=unfinished)
    await settle()

    assert harness.gate.queued == int(not unfinished), "a request joins the queue only when it is complete"

    client.leave()
    await client.finish()

    assert (harness.gate.queued, client.started) == (0, False)
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 0)]

    held.release()

    assert harness.at_rest


@in_virtual_time
async def test_a_body_that_arrived_in_the_queue_reaches_vllms_app() -> None:
    harness = with_mounted(HttpHarness(max_concurrent=1, max_body_bytes=100))
    held = await harness.gate.enter()
    headers = {"Content-Type": "application/json"}
    waits = harness.request("POST", "/v1/embeddings", headers=headers, body=[b'{"input"', b': "x"}'])
    too_large = await harness.request("POST", "/v1/embeddings", headers=headers, body=[b"x" * 60, b"x" * 60]).finish()

    assert too_large.status == 413

    held.release()
    await waits.finish()

    assert waits.json() == {"slots": 1, "input": "x"}
    assert harness.at_rest


@in_virtual_time
async def test_a_defect_in_the_management_app_is_a_500_in_openais_shape(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bytes:
        raise RuntimeError("the secret reason")

    answer = await HttpHarness(metrics=broken).request("GET", "/metrics").finish()

    assert answer.status == 500
    assert b"secret reason" not in answer.body
    assert answer.error()["code"] == "internal_error"
    assert answer.headers["x-request-id"]


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
async def test_the_openapi_document_has_our_paths_and_vllms() -> None:
    document = (await HttpHarness().request("GET", "/openapi.json").finish()).json()

    assert {"/v1/embeddings", "/v1/streams/{stream_id}", "/livez"} <= set(document["paths"])
    assert "Theirs" in document["components"]["schemas"]


@in_virtual_time
async def test_the_openapi_document_works_without_an_engine() -> None:
    document = (await HttpHarness(ready=False).request("GET", "/openapi.json").finish()).json()

    assert "/livez" in document["paths"]
    assert "/v1/embeddings" not in document["paths"]


@in_virtual_time
async def test_the_docs_page_reads_that_document() -> None:
    answer = await HttpHarness().request("GET", "/docs").finish()

    assert answer.status == 200
    assert b"/openapi.json" in answer.body


@in_virtual_time
async def test_the_docs_page_loads_nothing_from_other_servers() -> None:
    harness = HttpHarness()
    page = (await harness.request("GET", "/docs").finish()).body.decode()
    links = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']*)["']""", page)

    assert "://" not in page
    assert "'validatorUrl': null" in page.replace('"', "'"), "by default a service on the internet checks the document"
    assert sorted(links) == [
        "/docs/favicon-32x32.png",
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui.css",
        "/openapi.json",
    ]
    for link in links[:-1]:
        answer = await harness.request("GET", link).finish()
        assert answer.status == 200
        assert int(answer.headers["content-length"]) > 500
    assert b"url(http" not in (await harness.request("GET", "/docs/swagger-ui.css").finish()).body
    assert (await harness.request("GET", "/docs/LICENSE").finish()).status == 404


@in_virtual_time
async def test_a_websocket_is_refused_before_its_handshake() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await HttpHarness().app({"type": "websocket", "path": "/v1/realtime", "headers": []}, None, send)

    assert sent == [{"type": "websocket.close", "code": 1008}]


@in_virtual_time
async def test_a_client_that_leaves_a_stream_of_vllms_app_frees_its_slot_at_any_token_rate() -> None:
    """A task group's cancellation passes over every task that is about to run. Where the next token is there as soon as
    the last one has been formatted, that is each stream at each try."""
    harness = HttpHarness()
    loop = asyncio.get_running_loop()
    tokens: set[asyncio.Future[None]] = set()
    turns = 0

    def engine_step() -> None:
        nonlocal turns
        turns += 1
        for token in tokens:
            token.set_result(None)
        tokens.clear()
        if turns < 1000:
            loop.call_soon(engine_step)

    async def said() -> AsyncIterator[bytes]:
        while True:
            token = loop.create_future()
            tokens.add(token)
            await token
            yield b"data: {}\n\n"

    app = FastAPI()
    app.add_api_route("/v1/messages", lambda: StreamingResponse(said()), methods=["POST"])
    harness.engine.http = app
    harness.engine.routes = {("POST", "/v1/messages"): Route.USES_ENGINE}
    client = harness.request("POST", "/v1/messages", body=b"{}")
    await settle()
    loop.call_soon(engine_step)
    while not client.body:
        await asyncio.sleep(0)
    client.leave()
    left = turns
    await client.finish()

    assert turns - left < 20
    assert harness.instrumentation.endings == [(Cause.DISCONNECTED, 0)]
    assert harness.at_rest


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
