"""The limits on URLs that clients make this machine fetch, and on files that it reads and decodes."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.engine.vllm import error_mapping, media_connector
from gateway.errors import ClientError
from tests.support.images import png
from tests.support.picture_server import PICTURE, Web


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def connector(*domains: str, folder: Path | None = None, **limits: Any) -> Any:
    made = media_connector.LimitedMediaConnector(
        allowed_media_domains=list(domains) or None, allowed_local_media_path="" if folder is None else str(folder)
    )
    made.limits = media_connector.MediaLimits(**limits)
    return made


def fetch(made: Any, url: str) -> tuple[int, int]:
    """The size of the image at that URL."""
    size: tuple[int, int] = asyncio.run(made.fetch_image_async(url)).size
    return size


def refusal(made: Any, url: str) -> str:
    """The message of the client error for that URL."""
    with pytest.raises(media_connector.MediaRejected) as refused:
        fetch(made, url)
    error = error_mapping.from_exception(refused.value)
    assert isinstance(error, ClientError)
    assert (error.status, error.param) == (400, "image_url")
    assert error.message.startswith("image_url: ")
    assert "Error" not in error.message
    assert "0x" not in error.message
    return error.message


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_nothing_is_fetched_without_a_list_of_domains(web: Web) -> None:
    for host in ("127.0.0.1", "localhost", "example.com"):
        assert "`--allowed-media-domains`" in refusal(connector(), f"http://{host}:{web.port}/")
    assert "`--allowed-media-domains`" in refusal(connector(), f"HTTPS://127.0.0.1:{web.port}/")
    assert web.asked == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::]",
        "127.0.0.1.",
    ],
)
def test_a_listed_domain_with_a_private_address_is_not_fetched(web: Web, host: str) -> None:
    """The address is checked where the connection is made: the domain's owner can change it at any time."""
    bare = host.strip("[]")
    message = refusal(connector(bare, bare.rstrip("."), "::ffff:127.0.0.1", "::1"), f"http://{host}:{web.port}/")

    assert web.asked == []
    assert "not public" in message or "could not be fetched" in message or "that domain" in message


def test_a_domain_with_two_addresses_is_not_fetched_from_the_private_one(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: real("127.0.0.1", *a, **k))

    assert "not public" in refusal(connector("cdn.example"), f"http://cdn.example:{web.port}/")
    assert web.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example:{port}/",
        "http://cdn.example.evil.example:{port}/",
        "http://xcdn.example:{port}/",
        "http://cdn.example@127.0.0.1:{port}/",
        "http://cdn.example:x@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@cdn.example/",
        "http://127.0.0.1:{port}#@cdn.example/",
        "http://127.0.0.1:{port}?@cdn.example/",
        "http://127.0.0.1:{port}/cdn.example",
        "http:127.0.0.1:{port}/",
        "http:///127.0.0.1:{port}/",
        "http://",
        "httpx://cdn.example/",
        "ftp://cdn.example/",
        "gopher://127.0.0.1:{port}/",
        "//cdn.example/",
        "/etc/passwd",
        "cdn.example",
        "",
        " http://cdn.example/",
        "http://cdn.example:99999999/",
        "http://[cdn.example/",
    ],
)
def test_a_url_to_another_host_is_refused(web: Web, url: str) -> None:
    if url:
        refusal(connector("cdn.example", private_addresses=True), url.format(port=web.port))
    assert web.asked == []


def test_a_listed_domain_is_fetched(web: Web) -> None:
    assert fetch(connector("localhost", private_addresses=True), f"http://LOCALHOST:{web.port}/a.png?b=c") == (8, 4)
    assert web.asked == ["/a.png?b=c"]


def test_a_redirect_is_not_followed(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    # As `launch` sets it; vLLM's own default is 1.
    monkeypatch.setenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "0")
    made = connector("localhost", private_addresses=True)
    message = refusal(made, f"http://localhost:{web.port}/to/http://localhost:{web.port}/")

    assert "status 302, and redirects are not followed" in message
    assert len(web.asked) == 1


def test_redirects_are_followed_to_listed_domains_only(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDIA_URL_ALLOW_REDIRECTS", "1")
    made = connector("localhost", private_addresses=True)

    assert fetch(made, f"http://localhost:{web.port}/to/http://localhost:{web.port}/x") == (8, 4)
    assert fetch(made, f"http://localhost:{web.port}/to//x") == (8, 4)
    for target in (f"http://127.0.0.1:{web.port}/never", "file:///etc/passwd", "ftp://localhost/", "http://[", ""):
        refusal(made, f"http://localhost:{web.port}/to/{target}")
    assert "too often" in refusal(made, f"http://localhost:{web.port}/to//to//to//to//to//x")
    assert "/never" not in web.asked


@pytest.mark.parametrize("status", [204, 400, 404, 429, 500, 503])
def test_a_url_with_an_error_status_is_a_client_error(web: Web, status: int) -> None:
    message = refusal(connector("localhost", private_addresses=True), f"http://localhost:{web.port}/status/{status}")

    assert f"status {status}" in message


def test_a_closed_port_and_an_unknown_host_give_the_same_error(web: Web) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        port = sock.getsockname()[1]
    made = connector("localhost", "nowhere.invalid", private_addresses=True)

    assert "could not be fetched" in refusal(made, f"http://localhost:{port}/")
    assert "could not be fetched" in refusal(made, "http://nowhere.invalid/")


def test_a_slow_server_is_given_up(web: Web) -> None:
    made = connector("localhost", private_addresses=True, timeout_s=0.3)

    assert "within 0.3 s (media.timeout_s)" in refusal(made, f"http://localhost:{web.port}/slow")


def test_the_size_of_a_fetched_file_has_a_limit(web: Web) -> None:
    made = connector("localhost", private_addresses=True, max_bytes=2000)

    assert fetch(made, f"http://localhost:{web.port}/long/1000") == (8, 4)
    assert "larger than 2000 bytes (media.max_bytes)" in refusal(made, f"http://localhost:{web.port}/long/5000000")


def test_data_urls_work_and_have_a_limit() -> None:
    made = connector(max_bytes=2000)

    assert fetch(made, data_url(PICTURE)) == (8, 4)
    assert fetch(made, data_url(PICTURE).replace("data:", "DATA:")) == (8, 4)
    assert "media.max_bytes" in refusal(made, data_url(PICTURE + bytes(3000)))


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png",
        "data:image/png;base64",
        "data:image/png,abc",
        "data:image/png;base64,",
        "data:image/png;base64,!!!",
        "data:image/png;base64,AAAA",
        data_url(b"<svg/>", "image/svg+xml"),
        data_url(b"%!PS-Adobe EPSF"),
        data_url(PICTURE[:40]),
    ],
)
def test_data_that_is_not_an_image_is_refused(url: str) -> None:
    refusal(connector(), url)


def test_a_picture_with_a_gigabyte_header_is_not_decoded() -> None:
    """A decompression bomb: its pixels are zeros, a few kilobytes when compressed."""
    made = connector(max_decoded_bytes=2**20)

    assert fetch(made, data_url(png(500, 500))) == (500, 500)
    assert "media.max_decoded_bytes" in refusal(made, data_url(png(2000, 2000)))
    refusal(made, data_url(png(60_000, 60_000, rows=1)))


def test_the_images_of_one_request_share_a_budget() -> None:
    made, other = connector(), connector()
    made.limits = other.limits = media_connector.MediaLimits()

    async def request() -> list[Any]:
        media_connector.BUDGET.set(media_connector.DecodeBudget(3 * 2**20))
        fetching = [one.fetch_image_async(data_url(png(500, 500))) for one in (made, other, made, other)]
        return await asyncio.gather(*fetching, return_exceptions=True)

    for _ in range(2):
        outcomes = asyncio.run(request())
        assert sum(isinstance(one, media_connector.MediaRejected) for one in outcomes) == 1, outcomes


def test_files_are_read_from_the_permitted_folder_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "media", tmp_path / "secret.png"
    inside.mkdir()
    (inside / "a b.png").write_bytes(PICTURE)
    outside.write_bytes(PICTURE)
    (inside / "link.png").symlink_to(outside)
    (inside / "folder").mkdir()
    (inside / "huge.png").write_bytes(PICTURE + bytes(5000))
    made = connector(folder=inside, max_bytes=2000)

    assert "`--allowed-local-media-path`" in refusal(connector(), f"file://{inside}/a%20b.png")
    assert fetch(made, f"file://{inside}/a%20b.png") == (8, 4)
    for path in (
        "/link.png",
        "/../secret.png",
        "/%2e%2e/secret.png",
        "/folder",
        "/none.png",
        "/a%00b",
        "/x" * 3000,
        "",
    ):
        message = refusal(made, f"file://{inside}{path}")
        assert str(tmp_path) not in message
    assert "media.max_bytes" in refusal(made, f"file://{inside}/huge.png")


def test_a_pipe_in_the_folder_delays_no_request(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")

    assert "not a regular file" in refusal(connector(folder=tmp_path), f"file://{tmp_path}/pipe.png")


def test_audio_and_video_have_the_same_limits(web: Web) -> None:
    made = connector()
    for fetching in (made.fetch_audio_async, made.fetch_video_async):
        for url in (f"http://127.0.0.1:{web.port}/", "file:///etc/passwd", "data:audio/wav;base64,AAAA", "x"):
            with pytest.raises(media_connector.MediaRejected):
                asyncio.run(fetching(url))
    assert web.asked == []


def test_fetches_from_threads_have_the_same_limits(web: Web) -> None:
    made = connector()

    assert made.fetch_image(data_url(PICTURE)).size == (8, 4)
    with pytest.raises(media_connector.MediaRejected):
        made.fetch_image(f"http://127.0.0.1:{web.port}/")

    async def within_a_loop() -> Any:
        return made.fetch_image(data_url(PICTURE)).size

    assert asyncio.run(within_a_loop()) == (8, 4)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("::ffff:93.184.216.34", True),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("239.1.2.3", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("::", False),
        ("::127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert media_connector.is_public(address) is public


def test_vllm_finds_the_connector_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_connector.LimitedMediaConnector, "limits", media_connector.LimitedMediaConnector.limits)
    media_connector.install_media_connector(media_connector.MediaLimits(timeout_s=7))
    made = media_connector.MEDIA_CONNECTOR_REGISTRY.load(
        media_connector.CONNECTOR_NAME, allowed_media_domains=["a.example"]
    )

    assert isinstance(made, media_connector.LimitedMediaConnector)
    assert made.limits.timeout_s == 7


def video(tmp_path: Path, frames: int) -> bytes:
    """A video whose frames take 0.9 MB each once decoded."""
    import cv2
    import numpy as np

    file = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 10, (640, 480))
    for number in range(frames):
        writer.write(np.full((480, 640, 3), number, dtype=np.uint8))
    writer.release()
    return file.read_bytes()


def test_the_frames_of_a_video_have_a_budget(tmp_path: Path) -> None:
    """A request may select the number of frames."""
    film = data_url(video(tmp_path, 60), "video/mp4")
    made = connector(max_decoded_bytes=40 * 2**20)
    frames = asyncio.run(made.fetch_video_async(film))

    assert frames.media[0].shape == (32, 480, 640, 3)

    for asked in ({"num_frames": -1}, {"num_frames": 60}, {"fps": 10}):
        made.media_io_kwargs = {"video": asked}
        with pytest.raises(media_connector.MediaRejected, match="max_decoded_bytes"):
            asyncio.run(made.fetch_video_async(film))


def test_a_video_of_separate_images_has_the_same_budget() -> None:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (500, 500)).save(buffer, "JPEG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    made = connector(max_decoded_bytes=5 * 2**20)

    def film(frames: int) -> Any:
        return asyncio.run(made.fetch_video_async("data:video/jpeg;base64," + ",".join([picture] * frames)))

    assert film(4).media[0].shape == (4, 500, 500, 3)
    with pytest.raises(media_connector.MediaRejected, match="max_decoded_bytes"):
        film(6)
