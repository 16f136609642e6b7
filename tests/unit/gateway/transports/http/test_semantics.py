"""HTTP semantics of all paths: HEAD, OPTIONS, 405, redirects, literal paths, bodies that all parsers read alike, and
errors in the shape of the endpoint's protocol."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from gateway.domain import AppOptions
from gateway.errors import (
    ClientError,
)
from tests.support.asgi import Client
from tests.support.harness import CHAT, COMPLETION, HttpHarness
from tests.support.semantics_app import SEPARATORS, mounted
from tests.support.time import in_virtual_time, settle

RESUMABLE = {"X-Stream-Resumable": "60"}


def plain(client: Client) -> dict[str, str]:
    return {name: value for name, value in client.headers.items() if name != "x-request-id"}


# HEAD.

READ = ["/livez", "/readyz", "/health", "/metrics", "/version", "/docs", "/openapi.json", "/", "/load"]
MODELS = ["/v1/models", "/v1/models/scripted", "/v1/models/unknown"]
NOWHERE = ["/lines", "/v1", "/nothing", "/livez/", "/metrics%0a", CHAT, "/tokenize"]


@pytest.mark.parametrize("path", [*READ, *MODELS, *NOWHERE])
@in_virtual_time
async def test_head_is_get_without_its_body(path: str) -> None:
    harness = mounted(HttpHarness())
    got = await harness.request("GET", path).finish()
    head = await harness.request("HEAD", path).finish()

    assert (head.status, plain(head)) == (got.status, plain(got))
    assert (head.body, head.complete) == (b"", True)
    assert harness.at_rest


@in_virtual_time
async def test_head_while_the_engine_starts() -> None:
    harness = HttpHarness(ready=False)

    assert [(await harness.request("HEAD", path).finish()).status for path in ("/livez", "/readyz", "/v1/models")] == [
        200,
        503,
        503,
    ]


@in_virtual_time
async def test_head_checks_a_stream_and_does_not_read_it() -> None:
    harness = HttpHarness()
    client = harness.post(headers=RESUMABLE)
    await settle()
    run = harness.engine.runs[0]
    run.put_text("a")
    await settle()
    path = f"/v1/streams/{run.id}"
    head = await harness.request("HEAD", path, headers={"Last-Event-ID": "1"}).finish()
    too_far = await harness.request("HEAD", path, headers={"Last-Event-ID": "9"}).finish()
    as_json = await harness.request("HEAD", path, headers={"Accept": "application/json"}).finish()
    client.leave()
    await settle()
    await asyncio.sleep(50)
    await harness.request("HEAD", path).finish()
    await asyncio.sleep(9)

    assert (head.status, head.headers["content-type"], head.body) == (200, "text/event-stream; charset=utf-8", b"")
    assert (head.headers["x-stream-id"], head.headers["x-stream-resumable"]) == (run.id, "60")
    assert (too_far.status, as_json.status, as_json.headers["content-type"]) == (400, 200, "application/json")
    assert run.live, "who looks neither ends a stream"

    await asyncio.sleep(2)

    assert not run.live, "nor makes its grace longer"


# 405 and OPTIONS.

ALLOWED = [
    (CHAT, "OPTIONS, POST"),
    (COMPLETION, "OPTIONS, POST"),
    ("/livez", "GET, HEAD, OPTIONS"),
    ("/", "GET, HEAD, OPTIONS"),
    ("/v1/streams/x", "DELETE, GET, HEAD, OPTIONS"),
    ("/v1/streams/x/cancel", "OPTIONS, POST"),
    ("/v1/models/x", "GET, HEAD, OPTIONS"),
    ("/v1/models", "GET, HEAD, OPTIONS"),
    ("/v1/messages", "OPTIONS, POST"),
]


@pytest.mark.parametrize(("path", "allowed"), ALLOWED)
@in_virtual_time
async def test_the_response_to_a_wrong_method_lists_the_allowed_ones(path: str, allowed: str) -> None:
    harness = mounted(HttpHarness())
    wrong = await harness.request("PATCH", path).finish()
    asked = await harness.request("OPTIONS", path).finish()

    assert (wrong.status, wrong.headers["allow"]) == (405, allowed)
    assert (asked.status, asked.headers["allow"], asked.body) == (204, allowed, b"")
    assert harness.at_rest


@in_virtual_time
async def test_options_of_an_unknown_path_is_a_404() -> None:
    assert (await HttpHarness().request("OPTIONS", "/nothing").finish()).status == 404


# A slash too many.


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("path", "place"),
    [
        (CHAT + "/", "../completions"),
        ("/livez/?a=b", "../livez?a=b"),
        ("/metrics/", "../metrics"),
        ("/v1/models/", "../models"),
        ("/v1/models/a/b/", "../b"),
        ("/v1/messages/", "../messages"),
        ("/v1/messages/count_tokens/", "../count_tokens"),
        ("/v1/streams/x/", "../x"),
    ],
)
@in_virtual_time
async def test_a_trailing_slash_is_redirected_to_the_path_without(method: str, path: str, place: str) -> None:
    """Relative, so that prefixes stay that a proxy has taken off."""
    answer = await mounted(HttpHarness()).request(method, path).finish()

    assert (answer.status, answer.headers["location"], answer.body) == (307, place, b"")


@pytest.mark.parametrize("path", ["/nothing/", "//", "/livez//", "/v1/"])
@in_virtual_time
async def test_a_trailing_slash_behind_an_unknown_path_is_a_404(path: str) -> None:
    assert (await mounted(HttpHarness()).request("GET", path).finish()).status == 404


# Models by name.


@in_virtual_time
async def test_a_model_is_found_by_its_name() -> None:
    harness = HttpHarness()
    harness.engine.models = {"org/name", "adapter", "with space"}
    for path, name in (
        ("/v1/models/org/name", "org/name"),
        ("/v1/models/org%2Fname", "org/name"),
        ("/v1/models/org%2fname", "org/name"),
        ("/v1/models/adapter", "adapter"),
        ("/v1/models/with%20space", "with space"),
    ):
        assert (await harness.request("GET", path).finish()).json()["id"] == name

    unknown = await harness.request("GET", "/v1/models/org").finish()

    assert (unknown.status, unknown.error()["code"], unknown.error()["param"]) == (404, "not_found", "model")
    assert "'org'" in unknown.error()["message"]


# Every path is taken literally.


@pytest.mark.parametrize(
    "path",
    [
        "/metrics%0a",
        "/metrics%0A",
        "/metrics%00",
        "/metrics%09",
        "/metrics%7f",
        "/metrics%C2%85",
        "/metrics%E2%80%A8",
        "/metrics%20",
        "/%6detrics",
        "/metrics%2f",
        "/metrics%2e",
        "/%2fmetrics",
        "//metrics",
        "/./metrics",
        "/x/../metrics",
        "/%2e/metrics",
        "/%2e%2e/metrics",
        "/metrics;x=1",
        "/metrics/x",
        "/metricsx",
        "/METRICS",
        "/metrics\\",
        "/metrics%5c",
        "/metrics%",
        "/metrics%zz",
        "/v1/models/../../metrics",
        "/v1/models/%2e%2e/%2e%2e/metrics",
        "/v1/streams/%2e%2e/models",
        "/v1/streams/x%2Fcancel",
        "/v1/streams/x/canc%65l",
        "/v1/streams/x%00",
        "/v1/models/x%0d%0ay",
        "/v1%2fmodels",
        "/v1/%6dodels",
    ],
)
@in_virtual_time
async def test_no_path_has_a_second_spelling(path: str) -> None:
    harness = mounted(HttpHarness())
    for method in ("GET", "POST"):
        answer = await harness.request(method, path).finish()

        assert (answer.status, answer.error()["code"]) == (404, "not_found")
        assert b"sluice_numbers" not in answer.body


# Bodies.


@in_virtual_time
async def test_line_separators_leave_escaped_with_the_right_length() -> None:
    harness = mounted(HttpHarness())
    for client in (
        await harness.request("GET", "/v1/models").finish(),
        await harness.request("GET", "/v1/models/" + SEPARATORS.replace("\x85", "x")).finish(),
        await harness.request("POST", "/v1/messages/" + "\u00e9").finish(),
    ):
        assert len(client.body) == int(client.headers["content-length"])
        assert len(client.body.decode().splitlines()) == 1
    assert (await harness.request("GET", "/v1/models").finish()).json() == {"data": [SEPARATORS]}
    streamed = await harness.request("GET", "/lines").finish()

    assert streamed.body.decode().splitlines() == [r"data: a\u2028b\u2029c\u0085d", "", "data: 2", ""]


@in_virtual_time
async def test_an_error_that_repeats_a_line_separator_escapes_it() -> None:
    harness = HttpHarness()
    harness.engine.prepare_error = ClientError(SEPARATORS)
    whole = await harness.post(stream=False).finish()

    assert whole.error()["message"] == SEPARATORS
    assert len(whole.body.decode().splitlines()) == 1
    assert len(whole.body) == int(whole.headers["content-length"])


@in_virtual_time
async def test_a_whole_response_escapes_line_separators() -> None:
    harness = HttpHarness()
    client = harness.post(stream=False)
    await settle()
    harness.engine.runs[0].document(orjson.dumps({"said": SEPARATORS}), tokens=5)
    harness.engine.runs[0].finish()
    await client.finish()

    assert client.json() == {"said": SEPARATORS}
    assert len(client.body.decode().splitlines()) == 1
    assert len(client.body) == int(client.headers["content-length"])


# Flags of vLLM.


@in_virtual_time
async def test_paths_may_have_the_root_path_before_them() -> None:
    harness = mounted(HttpHarness())
    harness.engine.options = AppOptions(root_path="/llm")
    for path in ("/livez", "/v1/models", "/v1/models/scripted", "/docs", "/"):
        assert (await harness.request("GET", path).finish()).status == 200
        assert (await harness.request("GET", "/llm" + path).finish()).status == 200
    stream = harness.request("POST", "/llm" + CHAT, body=b'{"stream": true}')
    await settle()
    harness.engine.runs[0].end("x")
    await stream.finish()
    docs = await harness.request("GET", "/llm/docs").finish()
    schema = (await harness.request("GET", "/llm/openapi.json").finish()).json()
    about = (await harness.request("GET", "/llm/", headers={"Host": "h"}).finish()).json()

    assert stream.status == 200
    assert b"'/llm/openapi.json'" in docs.body
    assert schema["servers"] == [{"url": "/llm"}]
    assert about["openai_base_url"] == "http://h/llm/v1"
    for path in ("/llmx/livez", "/llm/llm/livez", "/ll%6d/livez", "/llm%2flivez", "/llm//metrics", "/llm/metrics%0a"):
        assert (await harness.request("GET", path).finish()).status == 404


@in_virtual_time
async def test_documents_can_be_turned_off() -> None:
    harness = HttpHarness()
    harness.engine.options = AppOptions(has_docs=False)

    assert [(await harness.request("GET", path).finish()).status for path in ("/docs", "/openapi.json")] == [404, 404]


@in_virtual_time
async def test_load_counts_every_request_if_tracking_is_on() -> None:
    harness = HttpHarness(max_concurrent=1)
    running, waiting = harness.post(), harness.post(stream=False)
    await settle()
    off = await harness.request("GET", "/load").finish()
    harness.engine.options = AppOptions(counts_load=True)
    on = await harness.request("GET", "/load").finish()
    for client in (running, waiting):
        client.leave()
        await client.finish()
    after = await harness.request("GET", "/load").finish()

    assert [one.json() for one in (off, on, after)] == [{"server_load": count} for count in (0, 2, 0)]


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
@in_virtual_time
async def test_a_whole_response_has_the_engines_load_on_request(path: str) -> None:
    harness = HttpHarness(max_concurrent=1)
    loads = {}
    for kind in ("TEXT", "json", "other", ""):
        client = harness.post(path, headers={"endpoint-load-metrics-format": kind}, stream=False)
        await settle()
        # In the queue, which the engine does not see; two, because the slot goes to the next one when this one ends.
        waiting = [harness.post(path), harness.post(path), harness.post(path)]
        await settle()
        (asked,) = (run for run in harness.engine.runs if run.live)
        asked.document(b"{}", tokens=1)
        asked.finish()
        await client.finish()
        loads[kind] = client.headers.get("endpoint-load-metrics")
        for one in waiting:
            await settle()
            (run,) = (run for run in harness.engine.runs if run.live)
            run.end("a")
            await one.finish()

    assert loads == {
        "TEXT": "TEXT named_metrics.num_requests_waiting=2",
        "json": "JSON named_metrics.num_requests_waiting=2",
        "other": None,
        "": None,
    }
