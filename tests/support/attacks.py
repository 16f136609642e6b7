"""Ways in which one client can try to stop a server for all others, each bounded in bytes, connections and time.

An attack returns when it has done its worst or after some seconds, and leaves nothing open. Bodies that would hold the
event loop are data, in `hostile_bodies`.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from tests.support import hostile_bodies
from tests.support.hostile_bodies import MESSAGES, RESPONSES
from tests.support.server import ASK, CHAT, MODEL, Raw, request_bytes

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Target:
    """The target of an attack and the credentials of the attacker; `seconds` is how long attacks may last
    that go on until they are ended."""

    port: int
    headers: dict[str, str]
    seconds: float = 8.0


Attack = Callable[[Target], str]
"""Attacks the target and describes in a few words how the server answered."""


# Bodies.


def body(name: str) -> Attack:
    """Send one of `hostile_bodies`; the status must be the right one."""

    def attack(target: Target) -> str:
        hostile = hostile_bodies.BODIES[name]
        with httpx.Client(base_url=f"http://127.0.0.1:{target.port}", timeout=60) as http:
            response = http.post(
                hostile.path,
                content=hostile.make(),
                headers={"Content-Type": "application/json", **target.headers},
            )
        assert response.status_code == hostile.status, f"{response.status_code}: {response.text[:300]}"
        assert len(response.content) < 64 * 2**10 or response.status_code == 200, "an error that echoes what it got"
        return str(response.status_code)

    return attack


def same_body_from_many(name: str, clients: int) -> Attack:
    """The same from several connections at once; some may be refused because the server is full."""

    def attack(target: Target) -> str:
        with ThreadPoolExecutor(clients) as pool:
            found = list(pool.map(lambda _: _status(target, hostile_bodies.BODIES[name]), range(clients)))
        assert all(200 <= status < 500 or status == 503 for status in found), found
        return _counted(found)

    return attack


def _status(target: Target, hostile: hostile_bodies.Hostile) -> int:
    with httpx.Client(base_url=f"http://127.0.0.1:{target.port}", timeout=90) as http:
        headers = {"Content-Type": "application/json", **target.headers}
        return http.post(hostile.path, content=hostile.make(), headers=headers).status_code


def _counted(found: Iterable[Any]) -> str:
    kinds = [str(one) for one in found]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds)))


# Grammars.


def _optional(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(count)}}


GRAMMARS: dict[str, dict[str, Any]] = {
    "1,000 properties, min and max": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {**_optional(1000), "minProperties": 1, "maxProperties": 900}},
        }
    },
    "5,000 optional properties": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _optional(5000)}}
    },
    "regex of 100,000 alternatives": {"structured_outputs": {"regex": "|".join(f"w{n}" for n in range(100_000))}},
    "20,000 choices": {"structured_outputs": {"choice": [f"choice {n}" for n in range(20_000)]}},
    "nested quantifiers": {"structured_outputs": {"regex": "((a{1,99}){1,99}){1,99}"}},
    "left recursion": {"structured_outputs": {"grammar": "root ::= root"}},
    "unicode class": {"structured_outputs": {"regex": "\\p{L}+"}},
    "inline flag": {"structured_outputs": {"regex": "(?i)abc"}},
    "deep schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": json.loads('{"type":"array","items":' * 200 + "{}" + "}" * 200)},
        }
    },
}


def grammar(name: str, copies: int = 1) -> Attack:
    """Ask for an answer under such a grammar, several times at once; each must be refused as the client's fault, or
    be answered."""

    def attack(target: Target) -> str:
        document = {"model": MODEL, "messages": ASK, "max_tokens": 4, **GRAMMARS[name]}

        def one(_: int) -> int:
            with httpx.Client(base_url=f"http://127.0.0.1:{target.port}", timeout=60) as http:
                return http.post(CHAT, json=document, headers=target.headers).status_code

        with ThreadPoolExecutor(copies) as pool:
            found = list(pool.map(one, range(copies)))
        assert set(found) <= {200, 400, 408, 503}, found
        return _counted(found)

    return attack


# Connections.


@contextmanager
def _sockets(target: Target, count: int) -> Iterator[list[socket.socket]]:
    socks = [socket.create_connection(("127.0.0.1", target.port), timeout=10) for _ in range(count)]
    try:
        yield socks
    finally:
        for sock in socks:
            with suppress(OSError):
                sock.close()


def _flood(sock: socket.socket, pieces: Iterable[bytes], until_s: float, most_bytes: int) -> int:
    """Send without reading until nothing is taken any more; how many bytes went out."""
    sent = 0
    sock.settimeout(0.5)
    for piece in pieces:
        if time.monotonic() > until_s or sent > most_bytes:
            break
        try:
            sock.sendall(piece)
        except TimeoutError:
            continue
        except OSError:
            break
        sent += len(piece)
    return sent


def _endlessly(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def _flooding(
    head: Callable[[Target], bytes], piece: bytes, connections: int = 4, most_bytes: int = 64 * MIB
) -> Attack:
    def attack(target: Target) -> str:
        until_s = time.monotonic() + target.seconds
        with _sockets(target, connections) as socks:

            def one(sock: socket.socket) -> int:
                with suppress(OSError):
                    sock.sendall(head(target))
                return _flood(sock, _endlessly(piece), until_s, most_bytes // connections)

            with ThreadPoolExecutor(connections) as pool:
                sent = sum(pool.map(one, socks))
        return f"{sent / MIB:.1f} MiB taken"

    return attack


def _lines(target: Target) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in target.headers.items()).encode()


def _chunked(path: str, *, authorized: bool = True) -> Callable[[Target], bytes]:
    def head(target: Target) -> bytes:
        lines = _lines(target) if authorized else b""
        return (
            b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n%bTransfer-Encoding: chunked\r\n\r\n"
            % (path.encode(), lines)
        )

    return head


def many_key_lines(target: Target) -> str:
    """As many credentials as fit into the headers, many times."""
    lines = "".join(f"x-api-key: {secrets.token_hex(3)}\r\n" for _ in range(1_200))
    found = []
    for _ in range(20):
        raw = Raw(target.port, f"GET /v1/models HTTP/1.1\r\nHost: a\r\n{lines}Connection: close\r\n\r\n".encode())
        with suppress(OSError):
            raw.read_all()
        found.append(raw.seen[9:12].decode() or "closed")
        raw.close()
    assert set(found) <= {"400", "401", "403", "431", "closed"}, found
    return _counted(found)


def slow_bodies(target: Target) -> str:
    """Twenty bodies that stop just before their end, and then come a byte at a time."""
    size = 15 * MIB
    with _sockets(target, 20) as socks:
        first = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        head = first + _lines(target) + b"Content-Length: %d\r\n\r\n" % (size + 100)

        def one(sock: socket.socket) -> int:
            with suppress(OSError):
                sock.settimeout(5)
                sock.sendall(head + b" " * size)
                for _ in range(int(target.seconds)):
                    time.sleep(1)
                    sock.sendall(b" ")
                return 1
            return 0

        with ThreadPoolExecutor(20) as pool:
            held = sum(pool.map(one, socks))
    return f"{held} of 20 still taken after {target.seconds:.0f} s"


def resets_of_stopped_readers(target: Target) -> str:
    """Readers of every kind of stream that stop reading until all buffers are full, then reset the connection."""
    endpoints = [
        (CHAT, {"messages": ASK, "max_tokens": 2000, "ignore_eos": True, "logprobs": True, "top_logprobs": 5}),
        (MESSAGES, {"messages": ASK, "max_tokens": 2000}),
        (RESPONSES, {"input": "hi", "max_output_tokens": 2000}),
    ]
    until_s = time.monotonic() + target.seconds
    rounds = 0
    while time.monotonic() < until_s:
        rounds += 1
        raws = []
        for number in range(24):
            path, fields = endpoints[number % 3]
            raw = Raw(target.port)
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            raw.sock.sendall(request_bytes({"model": MODEL, "stream": True, **fields}, path, target.headers))
            raws.append(raw)
        time.sleep(1.0)
        for raw in raws:
            raw.rst()
    return f"{rounds * 24} resets"


def leave_at_once(target: Target) -> str:
    """Requests of every endpoint whose client leaves within some milliseconds."""
    bodies = [
        (CHAT, {"messages": ASK, "stream": True, "max_tokens": 500}),
        (CHAT, {"messages": ASK, "max_tokens": 500}),
        (MESSAGES, {"messages": ASK, "max_tokens": 500, "stream": True}),
        (RESPONSES, {"input": "hi", "max_output_tokens": 500}),
        ("/v1/embeddings", {"input": "hi"}),
    ]
    until_s = time.monotonic() + target.seconds
    left = 0

    def one(number: int) -> None:
        nonlocal left
        chance = number
        while time.monotonic() < until_s:
            path, fields = bodies[chance % len(bodies)]
            chance += 1
            with suppress(OSError):
                raw = Raw(target.port, request_bytes({"model": MODEL, **fields}, path, target.headers))
                time.sleep((chance * 7 % 60) / 1000)
                raw.rst()
                left += 1

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{left} left"


def silent_connections(target: Target) -> str:
    """A thousand connections that send nothing, or half a request line."""
    with _sockets(target, 1_000) as socks:
        for sock in socks[::2]:
            with suppress(OSError):
                sock.sendall(b"POST /v1/chat/comp")
        time.sleep(min(3.0, target.seconds))
    return "1,000 opened"


def bad_json_storm(target: Target) -> str:
    """Small broken requests as fast as they go, on kept connections."""
    until_s = time.monotonic() + min(4.0, target.seconds)
    wrong = [b"{", b"[]", b'{"messages":1}', b"\xff\xfe", b'{"messages":[{}]}', b"null", b'{"model":"x","messages":[]}']
    sent = 0

    def one(_: int) -> set[int]:
        nonlocal sent
        found = set()
        with httpx.Client(base_url=f"http://127.0.0.1:{target.port}", timeout=60) as http:
            while time.monotonic() < until_s:
                for path in (CHAT, "/v1/completions", MESSAGES, RESPONSES, "/tokenize"):
                    content = wrong[sent % len(wrong)]
                    headers = {"Content-Type": "application/json", **target.headers}
                    found.add(http.post(path, content=content, headers=headers).status_code)
                    sent += 1
        return found

    with ThreadPoolExecutor(4) as pool:
        found = set().union(*pool.map(one, range(4)))
    assert found <= {400, 404, 503}, found
    return f"{sent} refused"


ATTACKS: dict[str, Attack] = {
    "pipelined requests, nothing read, no key": _flooding(lambda _: b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 200),
    "pipelined chats, nothing read": _flooding(
        lambda target: b"",
        request_bytes({"model": MODEL, "messages": ASK, "max_tokens": 1}) * 20,
    ),
    "endless trailers, no key": _flooding(
        lambda target: _chunked(CHAT, authorized=False)(target) + b"0\r\n", b"x-trailer-line: " + b"a" * 100 + b"\r\n"
    ),
    "endless trailers": _flooding(
        lambda target: _chunked(CHAT)(target) + b"2\r\n{}\r\n0\r\n", b"x-trailer-line: " + b"a" * 100 + b"\r\n"
    ),
    "endless chunks of one byte": _flooding(_chunked(CHAT), b"1\r\n \r\n" * 500),
    "endless chunk extensions": _flooding(
        lambda target: _chunked(CHAT)(target) + b"1;", b"extension=" + b"a" * 1000 + b";"
    ),
    "endless chunk size": _flooding(_chunked(CHAT), b"0" * 4096),
    "endless body of a path that is not there": _flooding(_chunked("/nowhere"), b"1000\r\n" + b" " * 4096 + b"\r\n"),
    "endless body without a key": _flooding(_chunked(RESPONSES, authorized=False), b"1000\r\n" + b" " * 4096 + b"\r\n"),
    "endless header lines": _flooding(lambda _: b"GET / HTTP/1.1\r\n", b"x-header: a\r\n" * 50),
    "one endless header line": _flooding(lambda _: b"GET / HTTP/1.1\r\nx-header: ", b"a" * 4096),
    "1,200 key lines": many_key_lines,
    "slow bodies": slow_bodies,
    "silent connections": silent_connections,
    "stopped readers, reset": resets_of_stopped_readers,
    "clients that leave at once": leave_at_once,
    "small broken bodies": bad_json_storm,
    **{f"grammar: {name}": grammar(name) for name in GRAMMARS},
    "grammar: six of 5,000 properties": grammar("5,000 optional properties", 6),
    "8 x chat, 60,000 empty messages": same_body_from_many("chat, 60,000 empty messages", 8),
    "4 x 16 MiB of lists": same_body_from_many("chat, 16 MiB of lists", 4),
    **{f"body: {name}": body(name) for name in hostile_bodies.BODIES},
}
"""By name: all that the suite tries in its full size."""

SMALL = (
    "pipelined requests, nothing read, no key",
    "endless trailers, no key",
    "1,200 key lines",
    "stopped readers, reset",
    "clients that leave at once",
    "grammar: 1,000 properties, min and max",
    "body: chat, 8,000 empty messages",
    "body: responses, 12,000 empty items",
    "body: chat, 16 MiB of empty messages",
    "body: chat, stop_token_ids of a million",
)
"""Those of the size that runs always: the ones that stopped a server once."""

__all__ = ["ATTACKS", "SMALL", "Attack", "Target"]
