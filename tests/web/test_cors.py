"""Pages may call the server from a browser, as they may call vLLM's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.web.guard import with_cors
from tests.support.asgi import Client
from tests.support.edge import CHAT, Edge, key_line
from tests.support.time import in_virtual_time


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(key_line("ann", "sk-ann"))
    return tmp_path / "keys"


PAGE = {"Origin": "https://page.example"}


@in_virtual_time
async def test_a_preflight_needs_no_key(keys_file: Path) -> None:
    """Browsers send none with it, so asking for one would lock every page out."""
    edge = Edge(keys_file=keys_file)
    app = with_cors(edge.app, ["*"])
    asks = {**PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = await Client(app, "OPTIONS", CHAT, headers=asks).finish()

    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()


@in_virtual_time
async def test_a_refusal_can_be_read_by_the_page(keys_file: Path) -> None:
    app = with_cors(Edge(keys_file=keys_file).app, ["*"])
    answer = await Client(app, "POST", CHAT, headers=PAGE).finish()

    assert answer.status == 401
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "X-Stream-Id" in answer.headers["access-control-expose-headers"]


@in_virtual_time
async def test_other_origins_are_not_named(keys_file: Path) -> None:
    app = with_cors(Edge(keys_file=keys_file).app, ["https://other.example"])
    answer = await Client(app, "GET", "/livez", headers=PAGE).finish()

    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers


def test_no_origins_no_middleware() -> None:
    app = object()

    assert with_cors(app, []) is app
