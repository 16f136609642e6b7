from __future__ import annotations

from gateway.domain import Cause
from tests.support.harness import HttpHarness
from tests.support.time import in_virtual_time, settle


@in_virtual_time
async def test_a_whole_answer_is_one_json_document() -> None:
    harness = HttpHarness()
    client = harness.post(stream=False)
    await settle()
    harness.engine.runs[0].document(b'{"id":"chatcmpl-1"}', tokens=5)
    harness.engine.runs[0].sink.finish()
    await client.finish()

    assert (client.status, client.json()) == (200, {"id": "chatcmpl-1"})
    assert client.headers["content-length"] == str(len(client.body))
    assert client.headers["x-stream-id"] == harness.engine.runs[0].id
    assert harness.instrumentation.endings == [(Cause.COMPLETED, 0)]
    assert harness.at_rest


@in_virtual_time
async def test_an_answer_without_a_document_is_an_internal_error_and_never_an_empty_200() -> None:
    harness = HttpHarness()
    client = harness.post(stream=False)
    await settle()
    harness.engine.runs[0].sink.finish()
    await client.finish()

    assert (client.status, client.error()["code"]) == (500, "internal_error")
