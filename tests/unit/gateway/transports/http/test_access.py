"""Access: every path without a key, with a client's and with an operator's, and by the origin of a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from gateway.engine.base import Route
from gateway.transports.http.origins import Sites
from tests.support.asgi import Client
from tests.support.harness import CHAT, COMPLETION, HttpHarness, key_line
from tests.support.time import in_virtual_time

CLIENT = {"Authorization": "Bearer sk-ann"}
OPERATOR = {"Authorization": "Bearer sk-root"}
LOCAL = Sites.of("127.0.0.1", True, (), ())
# What the engine has: for clients, and for operators.
CLIENTS = {("POST", "/v1/embeddings"): Route.USES_ENGINE, ("GET", "/v1/models"): Route.LIGHT}
OPERATORS = {
    ("POST", "/scale_elastic_ep"): Route.OPERATOR,
    ("POST", "/sleep"): Route.OPERATOR,
    ("GET", "/kv_event_sources"): Route.OPERATOR,
}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(key_line("ann", "sk-ann") + key_line("root", "sk-root", ":operator"), encoding="utf-8")
    return path


def made(**options: Any) -> HttpHarness:
    """A harness whose engine has endpoints of its own."""
    harness = HttpHarness(**options)
    app = FastAPI()

    async def answer() -> dict[str, Any]:
        return {"taken": harness.gate.slots_taken}

    harness.engine.routes = {**CLIENTS, **OPERATORS, ("GET", "/ping"): Route.LIGHT}
    for method, path in harness.engine.routes:
        app.add_api_route(path, answer, methods=[method])
    harness.engine.http = app
    return harness


OPEN = [("GET", path) for path in ("/livez", "/readyz", "/health", "/ping", "/metrics")]
OURS = [
    ("GET", "/version"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/streams/chatcmpl-1"),
    ("DELETE", "/v1/streams/chatcmpl-1"),
    ("POST", "/v1/streams/chatcmpl-1/cancel"),
    ("POST", CHAT),
    ("POST", COMPLETION),
    ("GET", CHAT),
    ("OPTIONS", CHAT),
    ("GET", "/nothing"),
    ("GET", "/"),
]
PATHS = OPEN + OURS + [*CLIENTS] + [*OPERATORS]


async def status(harness: HttpHarness, method: str, path: str, headers: dict[str, str]) -> int:
    client = harness.request(method, path, headers=headers, body=b"[]" if method == "POST" else b"")
    return (await client.finish()).status


@pytest.mark.parametrize(("method", "path"), PATHS)
@in_virtual_time
async def test_every_path_without_a_key_with_a_clients_and_with_an_operators(
    keys_file: Path, method: str, path: str
) -> None:
    keyed, free, opened = made(keys_file=keys_file), made(), made(operator_endpoints=True)
    without_key = await status(keyed, method, path, {})
    by_client = await status(keyed, method, path, CLIENT)
    by_operator = await status(keyed, method, path, OPERATOR)
    without_keys = await status(free, method, path, {})
    with_all_open = await status(opened, method, path, {})

    is_open, is_operators = (method, path) in OPEN, (method, path) in OPERATORS
    assert (without_key == 401) is not is_open
    assert (by_client == 403) is is_operators
    assert (without_keys == 403) is is_operators
    for answered in (by_operator, with_all_open):
        assert answered not in (401, 403)
    if is_operators:
        assert (by_operator, with_all_open) == (200, 200)
    else:
        assert by_client == by_operator == without_keys == with_all_open


@in_virtual_time
async def test_the_refusal_of_an_operator_endpoint_names_the_key_that_it_takes(keys_file: Path) -> None:
    refused = await made(keys_file=keys_file).request("POST", "/sleep", headers=CLIENT).finish()
    closed = await made().request("POST", "/sleep").finish()

    for answer in (refused, closed):
        assert (answer.status, answer.error()["code"], answer.error()["type"]) == (403, "forbidden", "permission_error")
        assert "sluice key new --operator NAME" in answer.error()["message"]
    assert "server.operator_endpoints" in closed.error()["message"]


@in_virtual_time
async def test_an_operator_acts_while_all_slots_are_taken(keys_file: Path) -> None:
    harness = made(keys_file=keys_file, max_concurrent=1, max_waiting=0)
    held = await harness.gate.enter()

    assert await status(harness, "POST", "/sleep", OPERATOR) == 200

    held.release()


@in_virtual_time
async def test_an_operators_key_sees_its_own_streams_only(keys_file: Path) -> None:
    harness = made(keys_file=keys_file)
    stream = harness.post(headers={**CLIENT, "X-Stream-Resumable": "60"})
    await harness.request("GET", "/livez").finish()
    stream_id = harness.engine.runs[0].id

    assert await status(harness, "GET", f"/v1/streams/{stream_id}", OPERATOR) == 404
    assert await status(harness, "DELETE", f"/v1/streams/{stream_id}", OPERATOR) == 404

    harness.engine.runs[0].end("x")
    await stream.finish()


async def sent(harness: HttpHarness, *lines: tuple[str, str]) -> Client:
    """A request with header lines that may repeat."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in lines]
    return await harness.request("GET", "/v1/models", extra={"headers": raw}).finish()


@pytest.mark.parametrize(
    ("lines", "answered"),
    [
        ([("authorization", "Bearer sk-ann")], True),
        ([("authorization", "bearer  sk-ann ")], True),
        ([("x-api-key", "sk-ann")], True),
        ([("x-api-key", " sk-ann ")], True),
        # A proxy's own password in one, the key in the other.
        ([("authorization", "Basic cm9vdDpyb290"), ("x-api-key", "sk-ann")], True),
        ([("authorization", "Bearer none"), ("x-api-key", "sk-ann")], True),
        ([("x-api-key", "none"), ("authorization", "Bearer sk-ann")], True),
        ([("authorization", "sk-ann")], False),
        ([("authorization", "Bearer")], False),
        ([("authorization", "Bearer ")], False),
        ([("authorization", "Basic sk-ann")], False),
        ([("authorization", "Bearer sk-ann,sk-root")], False),
        ([("x-api-key", "Bearer sk-ann")], False),
        ([("x-api-key", "")], False),
        ([("authorization", "Bearer sk-ann"), ("authorization", "Bearer sk-ann")], False),
        ([("authorization", "Bearer none"), ("authorization", "Bearer sk-ann")], False),
        ([("x-api-key", "sk-ann"), ("x-api-key", "none")], False),
        ([("authorization", "Bearer sk-ann"), ("x-api-key", "a"), ("x-api-key", "b")], False),
        ([("cookie", "authorization=Bearer sk-ann"), ("api-key", "sk-ann")], False),
    ],
)
@in_virtual_time
async def test_the_headers_in_which_a_key_is_found(
    keys_file: Path, lines: list[tuple[str, str]], answered: bool
) -> None:
    answer = await sent(made(keys_file=keys_file), *lines)

    assert answer.status == (200 if answered else 401)
    if not answered:
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "send it as `Authorization: Bearer <key>` or `x-api-key: <key>`"),
        ([("authorization", "sk-x")], "must be `Bearer <key>`"),
        ([("authorization", "Bearer sk-x")], "not known to this server"),
        ([("x-api-key", "sk-x")], "not known to this server"),
        ([("x-api-key", "sk-x"), ("x-api-key", "sk-x")], "more than one `x-api-key` header"),
    ],
)
@in_virtual_time
async def test_the_message_of_a_401_names_the_mistake(
    keys_file: Path, lines: list[tuple[str, str]], words: str
) -> None:
    message = (await sent(made(keys_file=keys_file), *lines)).error()["message"]

    assert words in message
    assert "sk-x" not in message


@in_virtual_time
async def test_thousands_of_keys_in_one_request_are_not_tried(keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harness, tried = made(keys_file=keys_file), []
    monkeypatch.setattr(harness.keys, "owner", tried.append)
    answer = await sent(harness, *[("x-api-key", f"sk-{number}") for number in range(2100)])

    assert (answer.status, tried) == (401, [])


PAGE = {"Origin": "https://evil.example", "Host": "127.0.0.1:8000"}
REBOUND = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000", "Sec-Fetch-Site": "same-origin"}


@pytest.mark.parametrize("headers", [PAGE, REBOUND])
@pytest.mark.parametrize(("method", "path"), PATHS)
@in_virtual_time
async def test_a_server_without_keys_is_not_open_to_every_page(method: str, path: str, headers: dict[str, str]) -> None:
    harness = made(sites=LOCAL, operator_endpoints=True)
    answer = await harness.request(method, path, headers=headers, body=b"[]" if method == "POST" else b"").finish()

    assert (answer.status == 403) is (path not in ("/livez", "/readyz", "/health", "/ping"))
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert harness.engine.runs == []


@pytest.mark.parametrize("headers", [PAGE, REBOUND])
@in_virtual_time
async def test_the_origin_of_a_request_with_a_key_is_not_checked(keys_file: Path, headers: dict[str, str]) -> None:
    """Such as a proxy on the same machine, which passes its own name and its page's origin on."""
    harness = made(keys_file=keys_file, sites=LOCAL)

    assert await status(harness, "GET", "/v1/models", {**headers, **CLIENT}) == 200
    assert await status(harness, "GET", "/v1/models", headers) == 401, "the first thing to mend"
    assert await status(harness, "GET", "/metrics", headers) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:8000"},
        {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"},
        {"Host": "10.1.2.3:8000", "User-Agent": "kube-probe/1.32"},
    ],
)
@in_virtual_time
async def test_programs_and_the_servers_own_pages_are_allowed(headers: dict[str, str]) -> None:
    local, elsewhere = made(sites=LOCAL), made()
    assert await status(local, "GET", "/livez", headers) == 200
    for harness in (local, elsewhere) if "10.1.2.3:8000" not in headers.values() else (elsewhere,):
        assert await status(harness, "POST", "/v1/embeddings", headers) == 200


async def shaken(harness: HttpHarness, *lines: tuple[bytes, bytes]) -> list[Any]:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "query_string": b"", "headers": list(lines)}
    harness.guard.app = _accepting
    await harness.app(scope, None, send)
    return messages


async def _accepting(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})


@in_virtual_time
async def test_a_websocket_handshake_has_the_same_rules(keys_file: Path) -> None:
    """Browsers open them without a preflight, and any page can read their messages."""
    refused, taken = [{"type": "websocket.close", "code": 1008}], [{"type": "websocket.accept"}]
    local = (b"host", b"localhost:8000")
    for harness in (made(sites=LOCAL), made()):
        assert await shaken(harness, local, (b"origin", b"https://evil.example")) == refused
        assert await shaken(harness, local, (b"origin", b"http://localhost:8000")) == taken
        assert await shaken(harness, local) == taken
    assert await shaken(made(sites=LOCAL), (b"host", b"evil.example"), (b"origin", b"http://evil.example")) == refused
    assert await shaken(made(keys_file=keys_file), local) == refused
    assert await shaken(made(keys_file=keys_file), local, (b"authorization", b"Bearer sk-ann")) == taken
