"""API keys in the middleware: which requests need one, and in which header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.transports.http.middleware import EXCHANGE, Middleware
from tests.support.harness import key_line
from tests.support.time import in_virtual_time
from tests.support.wrapped import Wrapped, hello

SECRET = "sk-sluice-topsecret"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(key_line("ann", SECRET), encoding="utf-8")
    return path


@in_virtual_time
async def test_without_a_key_a_request_is_refused_and_the_error_names_the_header(keys_file: Path) -> None:
    answer = await Wrapped(keys_file=keys_file).get()

    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error()["code"] == "invalid_api_key"
    assert "Authorization: Bearer <key>" in answer.error()["message"]


@in_virtual_time
async def test_an_unknown_key_is_called_unknown(keys_file: Path) -> None:
    answer = await Wrapped(keys_file=keys_file).get(headers={"Authorization": "Bearer sk-wrong"})

    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error()["message"] == "This API key is not known to this server."


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {SECRET}"}, {"X-Api-Key": SECRET}])
@in_virtual_time
async def test_a_key_is_accepted_in_either_header(keys_file: Path, headers: dict[str, str]) -> None:
    seen: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope[EXCHANGE].caller.owner)
        await hello(scope, receive, send)

    assert (await Wrapped(app, keys_file=keys_file).get(headers=headers)).status == 200
    assert seen == ["ann"]


@in_virtual_time
async def test_an_unknown_key_in_the_other_header_is_called_unknown_too(keys_file: Path) -> None:
    answer = await Wrapped(keys_file=keys_file).get(headers={"X-Api-Key": "sk-wrong"})

    assert answer.status == 401
    assert answer.error()["message"] == "This API key is not known to this server."


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
@in_virtual_time
async def test_probes_and_scrapers_need_no_key(keys_file: Path, path: str) -> None:
    assert (await Wrapped(keys_file=keys_file).get(path)).status == 200


@in_virtual_time
async def test_metrics_can_be_protected_and_probes_stay_open(keys_file: Path) -> None:
    wrapped = Wrapped(keys_file=keys_file, protect_metrics=True)

    assert (await wrapped.get("/metrics")).status == 401
    assert (await wrapped.get("/livez")).status == 200


async def shake(guard: Middleware, headers: list[tuple[bytes, bytes]]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await guard({"type": "websocket", "path": "/v1/realtime", "headers": headers}, receive, send)
    return sent


@in_virtual_time
async def test_a_websocket_without_a_key_is_refused_before_its_handshake(keys_file: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    guard = Wrapped(app, keys_file=keys_file).guard

    assert await shake(guard, []) == [{"type": "websocket.close", "code": 1008}]
    assert await shake(guard, [(b"authorization", f"Bearer {SECRET}".encode())]) == [{"type": "websocket.accept"}]


@in_virtual_time
async def test_the_servers_own_life_passes_unguarded(keys_file: Path) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await Wrapped(app, keys_file=keys_file).guard({"type": "lifespan"}, None, None)

    assert seen == ["lifespan"]
