"""A request to a wrong base URL, and the path that describes the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.harness import HttpHarness
from tests.support.semantics_app import mounted
from tests.support.time import in_virtual_time


@pytest.mark.parametrize(
    ("path", "meant", "base"),
    [
        ("/chat/completions", "/v1/chat/completions", "http://host:1/v1."),
        ("/completions", "/v1/completions", "http://host:1/v1."),
        ("/models", "/v1/models", "http://host:1/v1."),
        ("/messages", "/v1/messages", "http://host:1."),
        ("/v1/v1/chat/completions", "/v1/chat/completions", "http://host:1/v1."),
        ("/v1/v1/messages", "/v1/messages", "http://host:1."),
        ("/v1//chat/completions", "/v1/chat/completions", "http://host:1/v1."),
        ("/api/v1/chat/completions", "/v1/chat/completions", "http://host:1/v1."),
        ("/openai/deployments/x/chat/completions", "/v1/chat/completions", "http://host:1/v1."),
        ("/v1/tokenize", "/tokenize", ""),
        ("/v1/livez", "/livez", ""),
    ],
)
@in_virtual_time
async def test_the_message_for_a_wrong_base_url_has_the_right_one(path: str, meant: str, base: str) -> None:
    answer = await mounted(HttpHarness()).request("POST", path, headers={"Host": "host:1"}).finish()

    assert answer.status == 404
    assert f"It is at {meant}" in answer.error()["message"]
    assert answer.error()["message"].endswith(base)


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
@in_virtual_time
async def test_the_base_url_itself_explains_its_use(path: str) -> None:
    answer = await HttpHarness().request("GET", path, headers={"Host": "host:1", "X-Forwarded-Proto": "https"}).finish()

    assert answer.status == 404
    assert "https://host:1/v1 as their base URL" in answer.error()["message"]


@pytest.mark.parametrize("host", ["", "a b", "x/y", '"', "a:b", "h" * 300, "[::1", "héé"])
@in_virtual_time
async def test_an_invalid_host_is_not_repeated(host: str) -> None:
    answer = await HttpHarness().request("GET", "/v1", headers={"Host": host}).finish()

    assert "http://<this server>/v1" in answer.error()["message"]


@in_virtual_time
async def test_the_message_for_ollamas_clients_names_the_protocol() -> None:
    answer = await HttpHarness().request("POST", "/api/chat").finish()

    assert (answer.status, "Ollama" in answer.error()["message"]) == (404, True)


@in_virtual_time
async def test_a_long_path_is_not_repeated_in_full() -> None:
    answer = await HttpHarness().request("GET", "/" + "a/" * 5000 + "b").finish()

    assert answer.status == 404
    assert len(answer.body) < 600


@in_virtual_time
async def test_the_root_path_describes_the_server(tmp_path: Path) -> None:
    answer = await HttpHarness().request("GET", "/", headers={"Host": "[::1]:8000"}).finish()

    assert answer.json() == {
        "name": "Sluice",
        "version": "0.1.0",
        "openai_base_url": "http://[::1]:8000/v1",
        "anthropic_base_url": "http://[::1]:8000",
        "docs": "http://[::1]:8000/docs",
    }
