"""Checks request paths, and explains a path that does not exist.

Routers and proxies interpret unusual paths differently: a path that a proxy lets through and this server takes for
another one would evade the proxy's rules. So every path is taken literally or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from gateway.errors import NotFound, is_anthropic

# The only parts of paths that clients choose: ids behind these prefixes, and whether they have slashes. Model names
# have, and official clients encode them.
_IDS = ((b"/v1/models/", True), (b"/v1/streams/", False), (b"/v1/responses/", False))
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")
_OLLAMA = re.compile(r"/api/(tags|chat|generate|show|ps|version|embed|embeddings|pull)")
_LONGEST_SHOWN = 200
_MOST_SEGMENTS = 6


def check(scope: MutableMapping[str, Any]) -> None:
    """Raises NotFound for a path that could be interpreted in two ways."""
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or b""
    if not path.isprintable():
        raise NotFound("There is nothing at a path with a control character.")
    if b"%" in raw and not _encoded_id(raw):
        raise NotFound(
            f"There is nothing at {shortened_path(raw.decode('latin-1'))}: paths are taken as they are written."
        )
    if "/." in path and any(segment in (".", "..") for segment in path.split("/")):
        raise NotFound(f"There is nothing at {shortened_path(path)}: paths are taken as they are written.")


def _encoded_id(raw: bytes) -> bool:
    """Whether only an id is percent-encoded, and, unless its kind has slashes, decodes to one segment."""
    for prefix, has_slashes in _IDS:
        if raw.startswith(prefix):
            rest = raw[len(prefix) :]
            if has_slashes:
                return True
            first, _, others = rest.partition(b"/")
            return b"%" not in others and b"%2f" not in first.lower() and b"%5c" not in first.lower()
    return False


def shortened_path(path: str) -> str:
    """A path for use in a message."""
    return path if len(path) <= _LONGEST_SHOWN else path[:_LONGEST_SHOWN] + "..."


def base_url(scope: MutableMapping[str, Any], headers: Mapping[str, str], root_path: str) -> str:
    """The URL of this server, as far as the request shows it."""
    host = headers.get("host", "")
    if not _HOST.fullmatch(host):
        return "http://<this server>" + root_path
    forwarded = headers.get("x-forwarded-proto", "")
    return f"{forwarded if forwarded in ('http', 'https') else scope.get('scheme', 'http')}://{host}{root_path}"


def not_found_message(path: str, base: str, is_known: Callable[[str], bool]) -> str:
    """The message for a path that does not exist. The usual mistake is a wrong base URL, so the message gives the right
    one if `is_known` is true for a path that was probably meant."""
    nothing = f"There is nothing at {shortened_path(path)}."
    segments = [segment for segment in path.split("/") if segment]
    if segments in ([], ["v1"]):
        return (
            f"{nothing} OpenAI clients have {base}/v1 as their base URL and add /chat/completions and so on; "
            f"Anthropic clients have {base} and add /v1/messages."
        )
    meant = next((one for one in _meant(segments[-_MOST_SEGMENTS:]) if one != path and is_known(one)), None)
    if meant is None:
        if _OLLAMA.fullmatch(path):
            return f"{nothing} This server does not speak Ollama's protocol, but OpenAI's: the base URL is {base}/v1."
        return nothing
    if is_anthropic(meant):
        return f"{nothing} It is at {meant}: the base URL of an Anthropic client is {base}."
    if meant.startswith("/v1/"):
        return f"{nothing} It is at {meant}: the base URL of an OpenAI client is {base}/v1."
    return f"{nothing} It is at {meant}."


def _meant(segments: list[str]) -> Iterator[str]:
    for start in range(len(segments)):
        tail = "/".join(segments[start:])
        yield f"/v1/{tail}"
        yield f"/{tail}"


def slashless_location(scope: MutableMapping[str, Any]) -> bytes:
    """A relative location of the path without its trailing slash, so that prefixes added by proxies are kept."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return b"../" + raw.rstrip(b"/").rpartition(b"/")[2] + (b"?" + query if query else b"")


class RootPathStripper:
    """`app`, whose paths may also be written behind a prefix that proxies leave on (vLLM's `--root-path`)."""

    def __init__(self, app: Any, root_path: Callable[[], str]) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        root = self._root_path() if scope["type"] in ("http", "websocket") else ""
        if root and scope["path"].startswith(root + "/"):
            scope = {**scope, "path": scope["path"][len(root) :]}
            raw: bytes = scope.get("raw_path") or b""
            # A percent-encoded prefix is not removed, and the path will be refused.
            scope["raw_path"] = raw.removeprefix(root.encode())
        await self._app(scope, receive, send)
