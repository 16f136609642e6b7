"""Pages of the origins that are named may call the server from a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.transports.http.middleware import with_cors
from gateway.transports.http.origins import Sites
from tests.support.asgi import Client
from tests.support.harness import CHAT, HttpHarness, key_line
from tests.support.time import in_virtual_time, settle


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(key_line("ann", "sk-ann"))
    return tmp_path / "keys"


PAGE = {"Origin": "https://page.example"}


@in_virtual_time
async def test_a_preflight_needs_no_key(keys_file: Path) -> None:
    """Browsers send none with it, so asking for one would lock every page out."""
    harness = HttpHarness(keys_file=keys_file)
    app = with_cors(harness.app, ["*"])
    headers = {**PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = await Client(app, "OPTIONS", CHAT, headers=headers).finish()

    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()


@in_virtual_time
async def test_a_refusal_can_be_read_by_the_page(keys_file: Path) -> None:
    app = with_cors(HttpHarness(keys_file=keys_file).app, ["*"])
    answer = await Client(app, "POST", CHAT, headers=PAGE).finish()

    assert answer.status == 401
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "X-Stream-Id" in answer.headers["access-control-expose-headers"]


@in_virtual_time
async def test_other_origins_are_not_named(keys_file: Path) -> None:
    app = with_cors(HttpHarness(keys_file=keys_file).app, ["https://other.example"])
    answer = await Client(app, "GET", "/livez", headers=PAGE).finish()

    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


def test_no_origins_no_middleware() -> None:
    app = object()

    assert with_cors(app, []) is app


@in_virtual_time
async def test_a_page_of_a_named_origin_reads_the_stream_and_its_headers() -> None:
    origins = ["https://page.example"]
    harness = HttpHarness(sites=Sites.of("127.0.0.1", True, (), origins))
    client = Client(
        with_cors(harness.app, origins),
        "POST",
        CHAT,
        headers={**PAGE, "Host": "localhost:8000", "X-Stream-Resumable": "60"},
        body=b'{"stream": true}',
    )
    await settle()
    harness.engine.runs[0].end("x")
    await client.finish()

    assert client.status == 200
    assert client.headers["access-control-allow-origin"] == "https://page.example"
    assert client.headers["vary"] == "Origin"
    exposed = client.headers["access-control-expose-headers"].split(", ")
    assert {"X-Stream-Id", "X-Stream-Token", "X-Stream-Resumable"} <= set(exposed)


@in_virtual_time
async def test_a_preflight_of_another_origin_fails() -> None:
    app = with_cors(
        HttpHarness(sites=Sites.of("127.0.0.1", True, (), ["https://page.example"])).app, ["https://page.example"]
    )
    headers = {"Origin": "https://evil.example", "Host": "localhost", "Access-Control-Request-Method": "POST"}
    answer = await Client(app, "OPTIONS", CHAT, headers=headers).finish()

    assert answer.status == 400
    assert "access-control-allow-origin" not in answer.headers
