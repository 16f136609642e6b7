"""The screen in front of vLLM's own app."""

from __future__ import annotations

from typing import Any

from gateway.engine.vllm.trust import Screen
from tests.support.asgi import Client
from tests.support.time import in_virtual_time


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive()).get("body", b"")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@in_virtual_time
async def test_a_request_without_a_body_may_name_its_content_type() -> None:
    """Some clients send `Content-Type: application/json` with every request, a GET included."""
    app = Screen(trust=False).app(echo)
    answer = await Client(app, "GET", "/v1/models", headers={"Content-Type": "application/json"}).finish()

    assert answer.status == 200


@in_virtual_time
async def test_fields_that_steer_the_scheduler_are_removed() -> None:
    app = Screen(trust=False).app(echo)
    headers = {"Content-Type": "application/json"}
    sent = b'{"input":"x","priority":-9,"cache_salt":"s"}'
    answer = await Client(app, "POST", "/v1/responses", headers=headers, body=sent).finish()

    assert answer.body == b'{"input":"x"}'
