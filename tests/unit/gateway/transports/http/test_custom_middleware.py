"""The operator's own middleware: everywhere, behind the check of keys, and it sees everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from gateway.errors import SettingsError
from gateway.transports.http.custom_middleware import load, wrap
from tests.support.harness import CHAT, HttpHarness, key_line
from tests.support.time import in_virtual_time, settle

HERE = "tests.unit.gateway.transports.http.test_custom_middleware"


class Counting:
    """A class, as `app.add_middleware` takes it: marks answers and counts what passes."""

    bytes_seen = 0

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marking(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-marked", b"1")]}
            Counting.bytes_seen += len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, marking)


async def only_friends(request: Request, call_next: Any) -> Any:
    """A function, as `app.middleware("http")` takes it: an access check."""
    if request.headers.get("x-friend") != "yes":
        return PlainTextResponse("no", status_code=418)
    return await call_next(request)


async def broken(request: Request, call_next: Any) -> Any:
    raise RuntimeError("hush")


def around(harness: HttpHarness, *names: str) -> HttpHarness:
    harness.guard.app = wrap(harness.guard.app, load([f"{HERE}.{name}" for name in names]))
    return harness


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/metrics", "/v1/streams/x", "/nowhere"])
@in_virtual_time
async def test_an_access_check_of_the_operators_holds_on_every_path(path: str) -> None:
    harness = around(HttpHarness(), "only_friends")
    answer = await harness.request("POST" if "/v1" in path else "GET", path, body=b"{}").finish()

    assert (answer.status, answer.body) == (418, b"no")
    assert harness.engine.runs == []


@in_virtual_time
async def test_keys_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(key_line("ann", "secret"))
    harness = around(HttpHarness(keys_file=tmp_path / "keys"), "only_friends")

    assert (await harness.request("POST", CHAT, body=b"{}").finish()).status == 401


@pytest.mark.parametrize("names", [("Counting",), ("only_friends",), ("only_friends", "Counting")])
@in_virtual_time
async def test_streams_pass_it_event_by_event(names: tuple[str, ...]) -> None:
    Counting.bytes_seen = 0
    harness = around(HttpHarness(), *names)
    client = harness.request("POST", CHAT, body=b'{"stream": true}', headers={"x-friend": "yes"}, direct_sink=True)
    await settle()
    harness.engine.runs[0].put_text("one")
    await settle()

    assert b"one" in client.body
    harness.engine.runs[0].end("two")
    await client.finish()

    assert client.events()[-1] == "[DONE]"
    assert client.complete
    if "Counting" in names:
        assert client.headers["x-marked"] == "1"
        assert Counting.bytes_seen == len(client.body)


@pytest.mark.parametrize("name", ["Counting", "only_friends"])
@in_virtual_time
async def test_a_client_that_leaves_still_frees_the_engine(name: str) -> None:
    harness = around(HttpHarness(), name)
    client = harness.request("POST", CHAT, body=b'{"stream": true}', headers={"x-friend": "yes"})
    await settle()
    harness.engine.runs[0].put_text("one")
    await settle()
    client.leave()
    await settle()

    assert not harness.engine.runs[0].live
    assert harness.at_rest


@in_virtual_time
async def test_its_failure_is_a_500_without_its_text() -> None:
    answer = await around(HttpHarness(), "broken").request("GET", "/livez").finish()

    assert answer.status == 500
    assert b"hush" not in answer.body


@pytest.mark.parametrize("path", ["nope.Nope", f"{HERE}.Nope", f"{HERE}.HERE", "Nope", ""])
def test_an_unusable_middleware_is_named_at_the_start(path: str) -> None:
    with pytest.raises(SettingsError, match=r"server\.middleware: "):
        load([path])
