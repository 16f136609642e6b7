"""The management app: cancel by id, defects, documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.domain import Cause
from tests.support.harness import HttpHarness, key_line
from tests.support.time import in_virtual_time, settle

ANN = {"Authorization": "Bearer sk-a"}
BOB = {"Authorization": "Bearer sk-b"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(key_line("ann", "sk-a") + key_line("bob", "sk-b"), encoding="utf-8")
    return path


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
async def test_a_defect_in_the_management_app_is_a_500_in_openais_shape(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bytes:
        raise RuntimeError("the secret reason")

    answer = await HttpHarness(metrics=broken).request("GET", "/metrics").finish()

    assert answer.status == 500
    assert b"secret reason" not in answer.body
    assert answer.error()["code"] == "internal_error"
    assert answer.headers["x-request-id"]


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
