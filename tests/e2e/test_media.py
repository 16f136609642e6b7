"""A vision model: the URLs that clients make this machine fetch, on every endpoint that accepts images."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import tiny_vision
from tests.support.images import png
from tests.support.server import CHAT, Server

MODEL = "eyes"
PICTURE = "data:image/png;base64," + base64.b64encode(png(40, 30)).decode()


class Inside(BaseHTTPRequestHandler):
    """A server that only this machine should reach."""

    asked: list[str] = []  # noqa: RUF012 - one server, one list

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png(40, 30))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def inside() -> Iterator[int]:
    """Its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Inside)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that may fetch from a domain with the address of this machine, as a foreign domain can have."""
    folder = tmp_path_factory.mktemp("eyes")
    model = tiny_vision.make(folder / "model")
    flags = [str(model), "--", *tiny_vision.FLAGS, "--allowed-media-domains", "localhost"]
    env = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "SLUICE_MEDIA__MAX_BYTES": "50000"}
    env["SLUICE_MEDIA__MAX_DECODED_BYTES"] = str(4 * 2**20)
    one = Server(folder, *flags, env=env)
    try:
        one.wait_ready()
        yield one
    finally:
        one.close()


def chat(server: Server, url: str) -> httpx.Response:
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}]
    return server.post(CHAT, model=MODEL, max_tokens=2, messages=[{"role": "user", "content": parts}])


def streamed(server: Server, url: str) -> httpx.Response:
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    return server.post(CHAT, model=MODEL, max_tokens=2, stream=True, messages=[{"role": "user", "content": parts}])


def responses(server: Server, url: str) -> httpx.Response:
    parts = [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": url, "detail": "auto"}]
    body = {"model": MODEL, "max_output_tokens": 2, "input": [{"role": "user", "content": parts}]}
    return server.post("/v1/responses", **body)


def messages(server: Server, url: str) -> httpx.Response:
    source = {"type": "url", "url": url}
    if url.startswith("data:"):
        source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    parts = [{"type": "text", "text": "hi"}, {"type": "image", "source": source}]
    return server.post("/v1/messages", model=MODEL, max_tokens=2, messages=[{"role": "user", "content": parts}])


def tokenize(server: Server, url: str) -> httpx.Response:
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}]
    return server.post("/tokenize", model=MODEL, messages=[{"role": "user", "content": parts}])


ENDPOINTS = [chat, streamed, responses, messages, tokenize]


@pytest.mark.parametrize("ask", ENDPOINTS)
def test_an_image_in_the_request_is_used(eyes: Server, ask: Callable[[Server, str], httpx.Response]) -> None:
    response = ask(eyes, PICTURE)

    assert response.status_code == 200, response.text


@pytest.mark.parametrize("ask", ENDPOINTS)
def test_a_url_that_may_not_be_fetched_is_refused_with_a_sentence(
    eyes: Server, inside: int, tmp_path: Path, ask: Callable[[Server, str], httpx.Response]
) -> None:
    (tmp_path / "secret.png").write_bytes(png(40, 30))
    broken = "data:image/png;base64,AAAA"
    too_large = "data:image/png;base64," + base64.b64encode(png(40, 30) + bytes(60_000)).decode()
    bomb = "data:image/png;base64," + base64.b64encode(png(2000, 2000)).decode()
    for url, words in {
        f"http://localhost:{inside}/": "not public",
        f"http://127.0.0.1:{inside}/": "does not fetch media from that domain",
        f"http://2130706433:{inside}/": "does not fetch media from that domain",
        f"http://localhost:{inside}@example.com/": "not a URL that can be fetched",
        f"file://{tmp_path}/secret.png": "--allowed-local-media-path",
        "ftp://localhost/": "begins with",
        broken: "could not be decoded",
        too_large: "media.max_bytes",
        bomb: "media.max_decoded_bytes",
    }.items():
        response = ask(eyes, url)
        assert response.status_code == 400, (url[:60], response.text)
        assert words in response.text, (url[:60], response.text)
    assert Inside.asked == []
    assert "Traceback" not in eyes.stderr()
