"""Replaces vLLM's media connector, because a server with unknown clients needs limits on images, audio and video.

A URL in a request makes this machine fetch an address of the client's choice, so fetching is off until
`--allowed-media-domains` lists domains. Then the host must be in that list, at each redirect, and its address is
checked where the connection is made, so that neither a redirect nor a change of the DNS record leads to an address that
only this machine can reach. All failures are a 400 with a message of ours.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import pybase64
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.image import open_image
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.connector import global_thread_pool
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO
from yarl import URL

logger = logging.getLogger(__name__)

CONNECTOR_NAME = "sluice"
"""The value of `VLLM_MEDIA_CONNECTOR` that selects this connector."""

_MAX_REDIRECTS = 3
_PIECE_BYTES = 64 * 2**10
# Networks whose addresses contain an IPv4 address to which a gateway may lead.
_EMBEDDING_NETWORKS = tuple(map(ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")))


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """The settings of `media`."""

    max_bytes: int = 32 * 2**20
    max_decoded_bytes: int = 2**30
    timeout_s: float = 30.0
    private_addresses: bool = False


class MediaRejected(VLLMValidationError):  # type: ignore[misc,unused-ignore]
    """Media that are refused. The message is for the client."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", parameter=field)

    def __str__(self) -> str:
        # vLLM's own method appends the field, which the message already names.
        return str(self.args[0])


class DecodeBudget:
    """The decoded bytes that the media of one request may still take."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = self._left_bytes = limit_bytes
        self._lock = threading.Lock()

    def charge(self, size_bytes: int, field: str) -> None:
        """Subtract `size_bytes`. Raises MediaRejected if less is left."""
        with self._lock:
            self._left_bytes -= size_bytes
            exceeded = self._left_bytes < 0
        if exceeded:
            raise MediaRejected(
                field,
                f"the media of this request are larger than {self._limit_bytes} bytes once decoded "
                "(media.max_decoded_bytes).",
            )


BUDGET: ContextVar[DecodeBudget | None] = ContextVar("sluice_media_budget", default=None)


def install_media_connector(limits: MediaLimits) -> None:
    """Register the connector with vLLM in this process; a user can still select another one."""
    LimitedMediaConnector.limits = limits
    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR_NAME)(LimitedMediaConnector)


def start_budget() -> None:
    """Set the budget that all media of the current task's request share."""
    BUDGET.set(DecodeBudget(LimitedMediaConnector.limits.max_decoded_bytes))


def is_public(address: str) -> bool:
    """Whether the address is reachable from the internet and contains no other address."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return _is_global(found.ipv4_mapped)
        if found.is_site_local or any(found in network for network in _EMBEDDING_NETWORKS):
            return False
    return _is_global(found)


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


class LimitedMediaConnector(MediaConnector):  # type: ignore[misc,unused-ignore]
    """Replaces vLLM's MediaConnector because that has no such limits. vLLM creates one for each message with media."""

    limits = MediaLimits()

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """The same from a thread of vLLM's."""
        context = contextvars.copy_context()
        loading = self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(context.run, asyncio.run, loading).result()

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """The image, audio or video at a URL. Raises MediaRejected."""
        field = _field(media_io)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                return await self._load(url, media_io, field, fetch_timeout)
        except TimeoutError:
            raise MediaRejected(
                field,
                f"the media could not be fetched and decoded within {self.limits.timeout_s:g} s (media.timeout_s).",
            ) from None

    async def fetch_image_embedding_async(self, data: str) -> Any:
        return await self._run_in_thread(super().fetch_image_embedding, "image_embeds", data)

    async def fetch_audio_embedding_async(self, data: str) -> Any:
        return await self._run_in_thread(super().fetch_audio_embedding, "audio_embeds", data)

    async def _load(self, url: str, media_io: Any, field: str, fetch_timeout: int | None) -> Any:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            if len(url) > self.limits.max_bytes * 4 // 3 + 256:
                raise self._too_large(field)
            return await self._run_in_thread(self._decode_data, field, url, media_io, field)
        if scheme in ("http", "https"):
            target = self._check_url(url, field)
            data = await asyncio.get_running_loop().run_in_executor(global_thread_pool, self._get_cached_bytes, url)
            if data is None:
                data = await self._fetch(target, media_io, field, fetch_timeout)
                await asyncio.get_running_loop().run_in_executor(global_thread_pool, self._put_cached_bytes, url, data)
            return await self._run_in_thread(self._decode, field, data, media_io, field)
        if scheme == "file":
            return await self._run_in_thread(self._decode_file, field, url, media_io, field)
        raise MediaRejected(field, "a URL of media begins with `data:`, `https:` or `http:`.")

    # Decoding, in vLLM's threads.

    async def _run_in_thread(self, work: Any, field: str, *args: Any) -> Any:
        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(global_thread_pool, context.run, work, *args)
        except MediaRejected:
            raise
        except VLLMValidationError as error:
            raise MediaRejected(field, f"{error.args[0]}") from None
        except Exception:
            # Decoders raise any exception for data in another format, with messages about their internals.
            logger.debug("media could not be decoded", exc_info=True)
            raise MediaRejected(
                field, "the media could not be decoded; they are broken or in an unsupported format."
            ) from None

    def _decode_data(self, url: str, media_io: Any, field: str) -> Any:
        kind, comma, text = url[5:].partition(",")
        if not comma or kind.rpartition(";")[2].strip().lower() != "base64":
            raise MediaRejected(field, "a data URL is `data:<type>;base64,<data>`.")
        if isinstance(media_io, VideoMediaIO) and kind.partition(";")[0].strip().lower() == "video/jpeg":
            # A list of frames, each of which has to pass the limits of an image.
            image_io = media_io.image_io

            def decode_frame(_: str, frame: str) -> Any:
                return self._decode(pybase64.b64decode(frame, validate=True), image_io, field)

            media_io.image_io = SimpleNamespace(load_base64=decode_frame)
            return media_io.load_base64("video/jpeg", text)
        return self._decode(pybase64.b64decode(text, validate=True), media_io, field)

    def _decode_file(self, url: str, media_io: Any, field: str) -> Any:
        folder: Path | None = self.allowed_local_media_path
        if folder is None:
            raise MediaRejected(
                field, "this server reads no files; its operator can permit a folder (`--allowed-local-media-path`)."
            )
        parts = urlsplit(url)
        path = Path(unquote(parts.netloc + parts.path)).resolve()
        if folder not in path.parents:
            raise MediaRejected(field, "the file is not in the folder from which this server reads media.")
        # Without O_NONBLOCK, opening a pipe would block the thread until its other end is opened.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise MediaRejected(field, "the file is not a regular file.")
            if found.st_size > self.limits.max_bytes:
                raise self._too_large(field)
            return self._decode(opened.read(self.limits.max_bytes), media_io, field)

    def _decode(self, data: bytes, media_io: Any, field: str) -> Any:
        limit = media_io.get_max_bytes()
        if len(data) > min(self.limits.max_bytes, limit or self.limits.max_bytes):
            raise self._too_large(field)
        if isinstance(media_io, ImageMediaIO):
            # Before the pixels are decoded: a file of a few kilobytes can declare gigabytes of them.
            width, height = open_image(BytesIO(data)).size
            self._budget().charge(width * height * 4, field)
            return media_io.load_bytes(data)
        expected = _video_bytes(data, media_io) if isinstance(media_io, VideoMediaIO) else 0
        self._budget().charge(expected, field)
        made = media_io.load_bytes(data)
        found = getattr(made, "media", made)
        parts = found if isinstance(found, tuple) else (found,)
        self._budget().charge(max(0, sum(int(getattr(one, "nbytes", 0)) for one in parts) - expected), field)
        return made

    def _budget(self) -> DecodeBudget:
        found = BUDGET.get()
        if found is None:
            # Code of vLLM's outside a request.
            found = self._own_budget = getattr(self, "_own_budget", None) or DecodeBudget(self.limits.max_decoded_bytes)
        return found

    def _too_large(self, field: str) -> MediaRejected:
        return MediaRejected(field, f"the media are larger than {self.limits.max_bytes} bytes (media.max_bytes).")

    # Fetching.

    def _check_url(self, url: str, field: str) -> URL:
        """The parsed URL, if it is allowed. Raises MediaRejected."""
        if not self.allowed_media_domains:
            raise MediaRejected(
                field,
                "this server fetches no media; send them as a data URL. Its operator can permit domains "
                "(`--allowed-media-domains`).",
            )
        try:
            # Parsed once, with the library that connects: two parsers can find different hosts in one URL.
            target = URL(url)
            host = (target.host or "").lower()
        except ValueError:
            host = ""
        if not host or target.user is not None or target.password is not None:
            raise MediaRejected(field, "this is not a URL that can be fetched.")
        known = {str(one).lower() for one in self.allowed_media_domains}
        if target.scheme not in ("http", "https") or (host not in known and (target.raw_host or "") not in known):
            raise MediaRejected(field, "this server does not fetch media from that domain.")
        return target

    async def _fetch(self, target: URL, media_io: Any, field: str, fetch_timeout: int | None) -> bytes:
        blocked = False

        def connect(found: Any) -> socket.socket:
            nonlocal blocked
            family, kind, protocol, _, address = found
            if not self.limits.private_addresses and not is_public(str(address[0])):
                blocked = True
                raise OSError("not a public address")
            return socket.socket(family, kind, protocol)

        timeout = aiohttp.ClientTimeout(total=fetch_timeout)
        made = aiohttp.TCPConnector(socket_factory=connect, use_dns_cache=False, force_close=True)
        try:
            # Without the proxies of the environment, which would resolve the name themselves.
            async with aiohttp.ClientSession(connector=made, timeout=timeout, trust_env=False) as session:
                return await self._follow(session, target, media_io, field)
        except TimeoutError:
            raise MediaRejected(field, f"the URL could not be fetched within {fetch_timeout} s.") from None
        except (aiohttp.ClientError, OSError, ValueError):
            reason = "leads to an address that is not public" if blocked else "could not be fetched"
            raise MediaRejected(field, f"the URL {reason}.") from None

    async def _follow(self, session: aiohttp.ClientSession, target: URL, media_io: Any, field: str) -> bytes:
        headers = {"User-Agent": "sluice"}
        for _ in range(_MAX_REDIRECTS + 1):
            async with session.get(target, headers=headers, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308) and envs.VLLM_MEDIA_URL_ALLOW_REDIRECTS:
                    target = self._check_url(str(target.join(URL(response.headers.get("Location", "")))), field)
                    continue
                if response.status != 200:
                    redirects = ", and redirects are not followed" if 300 <= response.status < 400 else ""
                    raise MediaRejected(field, f"the URL returned status {response.status}{redirects}.")
                return await self._read(response, media_io, field)
        raise MediaRejected(field, "the URL redirects too often.")

    async def _read(self, response: aiohttp.ClientResponse, media_io: Any, field: str) -> bytes:
        limit = min(self.limits.max_bytes, media_io.get_max_bytes() or self.limits.max_bytes)
        data = bytearray()
        async for piece in response.content.iter_chunked(_PIECE_BYTES):
            data += piece
            if len(data) > limit:
                raise self._too_large(field)
        return bytes(data)


def _video_bytes(data: bytes, media_io: Any) -> int:
    """The decoded size of the frames that the request selects from a video, by the video's metadata; 0 if unknown."""
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError:
        return 0
    # Not released by `capture.release`, which frees the stream without Python's lock; the garbage collector frees it.
    stream = BytesIO(data)
    capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, [])
    width, height, count = (
        int(capture.get(name))
        for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)
    )
    selected = media_io.num_frames
    every = selected <= 0 or "fps" in media_io.kwargs
    return max(0, width) * max(0, height) * 3 * max(0, count if every else min(selected, count))


def _field(media_io: Any) -> str:
    """The client's name of the field."""
    if isinstance(media_io, ImageMediaIO):
        return "image_url"
    return "audio_url" if isinstance(media_io, AudioMediaIO) else "video_url"
