"""Grammars on the running server: a hopeless one is a 400 before the first byte on every endpoint, streamed or whole,
and delays no other client."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from tests.support.server import ASK, CHAT, MODEL, Json, Server

TEXT, RESPONSES, MESSAGES = "/v1/completions", "/v1/responses", "/v1/messages"
SCHEMA: Json = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
BROKEN: Json = {"type": "object", "properties": {"a": {"type": "string", "pattern": "((("}}}
LARGE: Json = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2001)}}


def heavy(name: str) -> Json:
    """A schema that validates, but takes too long to compile."""
    fields = {f"{name}{i}": {"type": "string"} for i in range(1000)}
    return {"type": "object", "properties": fields, "minProperties": 10, "maxProperties": 500}


def body(path: str, **more: Any) -> Json:
    """A small request for that endpoint."""
    if path == TEXT:
        return {"model": MODEL, "prompt": "Hi", "max_tokens": 8, **more}
    if path == RESPONSES:
        return {"model": MODEL, "input": "Hi", "max_output_tokens": 16, **more}
    return {"model": MODEL, "messages": ASK, "max_tokens": 8, **more}


def with_schema(path: str, schema: Json) -> Json:
    """The same with a schema, in that endpoint's form."""
    if path == RESPONSES:
        return body(path, text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    if path == MESSAGES:
        return body(path, output_config={"format": {"type": "json_schema", "schema": schema}})
    return body(path, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


FIELD = {CHAT: "response_format", TEXT: "response_format", RESPONSES: "text.format", MESSAGES: "output_config.format"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("schema", [BROKEN, LARGE], ids=["broken", "large"])
@pytest.mark.parametrize("path", FIELD)
def test_a_bad_schema_is_a_400_that_names_the_field(server: Server, path: str, schema: Json, stream: bool) -> None:
    response = server.http.post(path, json={**with_schema(path, schema), "stream": stream})

    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(f"{FIELD[path]}: the grammar ")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"regex": "((("}},
        {"structured_outputs": {"grammar": "root ::= root"}},
        {"structured_outputs": {"choice": []}},
        {"logit_bias": {"10000000": 1}},
        {"stop_token_ids": [10**7]},
        {"stop_token_ids": [-1]},
        {"allowed_token_ids": [10**7]},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
def test_bad_fields_are_refused_before_the_first_byte(server: Server, path: str, fields: Json, stream: bool) -> None:
    response = server.http.post(path, json={**body(path, **fields), "stream": stream})
    known = path != RESPONSES or next(iter(fields)) != "allowed_token_ids"

    assert response.status_code == (400 if known else 200), response.text


def test_each_backend_serves_the_grammars_that_only_it_supports(server: Server) -> None:
    """In one engine, whatever the order of requests."""
    for fields, rule in (
        ({"regex": "[ab]{3}"}, lambda text: set(text) <= {"a", "b"} and len(text) == 3),
        ({"regex": "(?i)abc"}, lambda text: text.lower() == "abc"),
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
    ):
        text = server.http.post(TEXT, json=body(TEXT, structured_outputs=fields)).json()["choices"][0]["text"]
        assert rule(text), (fields, text)


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_with_a_dead_end_is_a_client_error(server: Server, stream: bool) -> None:
    stuck = {"grammar": 'root ::= "a" x\nx ::= x'}
    response = server.http.post(TEXT, json={**body(TEXT, structured_outputs=stuck), "stream": stream})

    assert response.status_code == (200 if stream else 400)
    assert '"code":"invalid_request"' in response.text
    assert '"retryable":false' in response.text


def test_a_letter_written_as_an_escape_hides_no_grammar(server: Server) -> None:
    text = json.dumps(body(RESPONSES, structured_outputs={"regex": "((("}, stream=True))
    hidden = text.replace("structured_outputs", "structured\\u005foutputs")
    response = server.http.post(RESPONSES, content=hidden, headers={"Content-Type": "application/json"})

    assert response.status_code == 400


def test_hopeless_grammars_delay_no_other_client_and_end_with_their_request(server: Server) -> None:
    statuses: list[int] = []

    def ask(number: int) -> None:
        request = with_schema(CHAT, heavy(f"{number}x"))
        statuses.append(
            server.http.post(CHAT, json=request, headers={"X-Request-Timeout": "3"}, timeout=30).status_code
        )

    bad = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in bad:
        thread.start()
    time.sleep(0.5)
    for number in range(3):
        began_s = time.monotonic()
        response = server.http.post(CHAT, json=with_schema(CHAT, {**SCHEMA, "title": f"innocent {number}"}))
        assert response.status_code == 200
        print(f"an innocent schema beside six hopeless ones: {time.monotonic() - began_s:.2f} s (goal 1)")
    for thread in bad:
        thread.join()

    # Deadline, too slow, or too large in memory; none of them a fault of ours.
    assert set(statuses) <= {400, 408}
    server.wait_idle()
