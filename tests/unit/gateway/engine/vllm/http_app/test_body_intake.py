"""Request bodies, checked in front of an app. The app here is FastAPI's, with models of our own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from fastapi import Body, FastAPI, Request
from pydantic import BaseModel, Field, model_validator
from starlette.responses import JSONResponse

from gateway.engine.bounded_json import BodyLimits
from gateway.engine.vllm.http_app.body_intake import BodyIntake
from gateway.engine.vllm.http_app.document_reader import DocumentReader
from gateway.engine.vllm.http_app.untrusted_fields import UntrustedFieldFilter
from gateway.errors import ClientError, DeadlineExceeded
from gateway.offload import checkpoint
from tests.support.asgi import Client

JSON = {"Content-Type": "application/json"}


class Item(BaseModel):
    name: str
    parts: list[int | str] = []


class Order(BaseModel, extra="allow"):
    items: list[Item] = []
    size: int | None = Field(None, le=2**63 - 1)
    slow_s: float = 0

    @model_validator(mode="before")
    @classmethod
    def _look(cls, data: Any) -> Any:
        for _ in range(int(data.get("slow_s", 0) * 100)):
            checkpoint()
            time.sleep(0.01)
        return data


def make_intake(timeout_s: float = 5.0, **limits: int) -> BodyIntake:
    app = FastAPI()
    threads: list[int] = []

    @app.post("/orders")
    async def order(request: Order) -> JSONResponse:
        threads.append(threading.get_ident())
        return JSONResponse({"items": len(request.items), "extra": request.model_extra, "size": request.size})

    @app.post("/raw")
    async def raw(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    @app.post("/two")
    async def two(a: int = Body(), b: int = Body()) -> JSONResponse:
        return JSONResponse(a + b)

    @app.get("/orders")
    async def orders() -> JSONResponse:
        return JSONResponse([])

    field_filter = UntrustedFieldFilter(trust=False)
    documents = DocumentReader(field_filter, BodyLimits(**limits), vocabulary=1000, context=500)
    return BodyIntake(app, documents, timeout_s, lambda error, *_: ClientError(str(error)))


async def post(intake: BodyIntake, path: str, body: Any) -> Any:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await Client(intake, "POST", path, headers=JSON, body=sent).finish()
    return answer.status, json.loads(answer.body)


def test_a_route_gets_the_validated_body_without_untrusted_fields() -> None:
    items = [{"name": "a"}] * 3
    sent = {"items": items, "priority": -9, "color": "red"}
    assert asyncio.run(post(make_intake(), "/orders", sent)) == (
        200,
        {"items": 3, "extra": {"color": "red"}, "size": None},
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_bodies_in_every_encoding_of_json_are_accepted(encoding: str) -> None:
    sent = json.dumps({"color": "grün"}, ensure_ascii=False).encode(encoding)
    status, answer = asyncio.run(post(make_intake(), "/orders", sent))

    assert (status, answer["extra"]) == (200, {"color": "grün"})


def test_routes_without_a_single_body_model_read_the_body_themselves() -> None:
    intake = make_intake()

    assert asyncio.run(post(intake, "/raw", {"x": [1], "priority": 3})) == (200, {"x": [1]})
    assert asyncio.run(post(intake, "/two", {"a": 1, "b": 2})) == (200, 3)


def test_a_request_without_a_body_may_have_a_content_type() -> None:
    """Some clients send `Content-Type: application/json` with every request, a GET included."""

    async def ask() -> int:
        return (await Client(make_intake(), "GET", "/orders", headers=JSON).finish()).status

    assert asyncio.run(ask()) == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"items": [{"name": "a"}] * 500 + [{}] * 500}, r"items\[500\]\.name: Field required"),
        ({"items": [{"name": "a"}] * 500 + ["x"] * 500}, r"items\[500\]: Input should be an object"),
        ({"items": [{"name": "a", "parts": [1] * 300 + [None]}]}, r"items\[0\]\.parts\[300\]: "),
        ({"size": 2**70}, "size: .*64 bits|size: .*less than"),
        ([1], "must be a JSON object"),
        (b"{bad", "not valid JSON"),
        ({"prompt": [5] * 501}, "prompt: This model's maximum context length is 500 tokens; the prompt has 501"),
        ({"input": [[5], [5] * 501]}, "input: This model's maximum"),
        ({"stop": ["a"] * 257}, r"stop has 257 strings; at most 256 are taken \(server.max_stop_strings\)"),
        ({"sampling_params": {"bad_words": ["a"] * 257}}, r"sampling_params\.bad_words has 257 strings"),
        ({"stop_token_ids": [5] * 1001}, r"stop_token_ids has 1001 entries; the model's vocabulary has 1000"),
        ({"logit_bias": {str(n): 1 for n in range(1001)}}, "logit_bias has 1001 entries"),
        ({"items": [{"name": "a"}] * 5000}, "items has 5000 items; at most 4096"),
    ],
)
def test_a_wrong_body_is_a_client_error_with_the_first_wrong_field(body: Any, words: str) -> None:
    with pytest.raises(ClientError, match=words) as caught:
        asyncio.run(post(make_intake(), "/orders", body))

    assert "instance of" not in caught.value.message
    assert len(caught.value.message) < 300


def test_the_check_of_a_body_is_bounded_and_does_not_block_the_loop() -> None:
    async def hold() -> float:
        loop = asyncio.get_running_loop()
        longest_s, began_s = 0.0, loop.time()
        intake = make_intake(timeout_s=0.2)
        body = {"slow_s": 1, "items": [{"name": "a"}] * 200}
        asking = asyncio.create_task(post(intake, "/orders", body))
        while not asking.done():
            before_s = loop.time()
            await asyncio.sleep(0.002)
            longest_s = max(longest_s, loop.time() - before_s)
        with pytest.raises(DeadlineExceeded, match="prepare_timeout_s"):
            await asking
        assert loop.time() - began_s < 0.9
        return longest_s

    assert asyncio.run(hold()) < 0.1


def test_the_check_of_a_body_ends_when_its_client_disconnects() -> None:
    async def leave() -> float:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        sent = json.dumps({"slow_s": 1, "items": [{"name": "a"}] * 200}).encode()
        client = Client(make_intake(), "POST", "/orders", headers=JSON, body=sent)
        asking = asyncio.create_task(client.finish())
        await asyncio.sleep(0.05)
        client.leave()
        await asyncio.wait((asking,), timeout=5)
        return loop.time() - began_s

    assert asyncio.run(leave()) < 0.9
