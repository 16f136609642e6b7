"""Requests and responses for the tests of the load generator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from loadtest.client.response import ResponseReader
from loadtest.scenario.workload import PreparedRequest, ReadPlan

REQUEST = PreparedRequest(
    number=0,
    turn=1,
    workload="chat",
    tenant="anna",
    model="m",
    path="/v1/chat/completions",
    body=b"{}",
    headers={},
    stream=True,
    choices=1,
    max_tokens=100,
    read_plan=ReadPlan(),
    counts_by_usage=False,
    counts_by_ids=False,
    is_verified=False,
    prompt_start=None,
    keeps_text=True,
)
ID = "chatcmpl-1"


def make_reader(**changes: Any) -> ResponseReader:
    """The reader of a response whose head has arrived."""
    request = replace(REQUEST, **changes)
    record = request.new_record(intended_ns=1)
    record.started_ns, record.sent_ns = 2, 3
    reader = ResponseReader(request, record)
    reader.on_first_byte(5)
    reader.on_head(200, "text/event-stream; charset=utf-8" if request.stream else "application/json", "r-1")
    return reader


def event(document: object, number: int | None = None) -> bytes:
    data = document if isinstance(document, bytes) else orjson.dumps(document)
    return (b"id: %d\n" % number if number is not None else b"") + b"data: " + data + b"\n\n"


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a chat."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more.pop("choice", {})}
    return {"id": ID, "choices": [choice], **more}


def usage(tokens: int, prompt: int = 7) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def ending(tokens: int) -> bytes:
    """The end of a successful stream."""
    return event(chunk(finish="stop")) + event({"id": ID, "choices": [], "usage": usage(tokens)}) + event(b"[DONE]")
