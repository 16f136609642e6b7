"""The limits on a JSON body, and that checking them does not change the document."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.engine import bounded_json
from gateway.engine.bounded_json import BodyLimits, is_cheap_to_parse, read_document
from gateway.errors import ClientError
from tests.support.hostile_bodies import BODIES, REFUSED

LIMITS = BodyLimits()
# Pieces that are hard to distinguish from structure.
TEXTS = ['a,[{"\\', "", "\\\\", "]", "[1,2,3]", '"' * 9, "x" * 300, "é\n\t"]


def a_value(dice: random.Random, depth: int = 0) -> Any:
    kind = dice.random()
    if depth > 4 or kind < 0.3:
        return dice.choice([1, -2.5, 1e30, True, None, *TEXTS])
    if kind < 0.5:
        return [dice.randrange(10**6) for _ in range(dice.choice([0, 3, 100, 700]))]
    if kind < 0.75:
        return [a_value(dice, depth + 1) for _ in range(dice.randrange(8))]
    return {dice.choice(["a", "b", *TEXTS]): a_value(dice, depth + 1) for _ in range(dice.randrange(8))}


@pytest.mark.parametrize("seed", range(60))
def test_a_document_is_read_as_it_was_written(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and pieces are so small that each value is cut somewhere."""
    monkeypatch.setattr(bounded_json, "_WINDOW_BYTES", 200)
    monkeypatch.setattr(bounded_json, "_PIECE_BYTES", 64)
    dice = random.Random(seed)
    for _ in range(10):
        document = {"first": a_value(dice), "second": a_value(dice)}
        for style in ({}, {"ensure_ascii": False, "separators": (",", ":")}, {"indent": 1}):
            body = json.dumps(document, **style).encode()  # type: ignore[arg-type]
            exact = bounded_json._Scan(body, BodyLimits(10**9, 10**9))
            exact.run()
            read = bounded_json._checked(
                bounded_json._loads(b"".join(exact.parts)), BodyLimits(10**9, 10**9, 10**9, 100), exact.lists
            )

            assert read == document
            assert read_document(body, LIMITS) == document


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"prompt": list(range(1_000_000))},
        lambda: {"prompt": [list(range(500)) for _ in range(2000)]},
        lambda: {"messages": [{"role": "user", "content": "def f(a, b): return {'a': [a], \"b\": b}\n" * 50_000}]},
        lambda: {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}] * 3}] * 2000},
        lambda: {
            "tools": [{"function": {"parameters": {"properties": {f"p{n}": {"type": "string"}}}}} for n in range(900)]
        },
        lambda: {"image": "data:image/png;base64," + "iVBORw0KGgo" * 1_000_000},
        lambda: {"prompt": "7" * 2**20},
        lambda: {"logit_bias": {str(n): -1.5 for n in range(50_000)}},
    ],
    ids=["a million ids", "2,000 token lists", "code", "a long chat", "900 tools", "an image", "digits", "many biases"],
)
def test_real_requests_are_within_the_limits(make: Callable[[], Any]) -> None:
    document = make()
    assert read_document(json.dumps(document).encode(), LIMITS) == document


@pytest.mark.parametrize(
    ("document", "words", "param"),
    [
        (
            {"messages": [{}] * 4097},
            "messages has 4097 items; at most 4096 are taken (server.max_json_items)",
            "messages",
        ),
        (
            {"messages": [{"content": [{}] * 4097}]},
            "messages[0].content has 4097 items; at most 4096",
            "messages[0].content",
        ),
        ({"a": 1, "stop": ["x"] * 4097}, "stop has 4097 items", "stop"),
        ({str(n): "x" for n in range(4097)}, "The request body has 4097 items", None),
        ({"messages": [{}] * 100_001}, "more than 100000 JSON values (server.max_json_values)", "messages"),
        ({"prompt": [7] * 2_000_001}, "more than 2000000 numbers in lists (server.max_json_numbers)", "prompt"),
        ({"a": {"b": json.loads("[" * 100 + "]" * 100)}}, "nests deeper than 100 levels (server.max_json_depth)", "a"),
    ],
)
def test_a_limit_is_named_with_the_field_and_the_setting(document: Any, words: str, param: str | None) -> None:
    with pytest.raises(ClientError) as caught:
        read_document(json.dumps(document).encode(), LIMITS)

    assert words in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        b"{bad",
        b'{"a": "never ends',
        b'{"a": "\\',
        b'{"a": [' + b"1," * 300 + b"]}",
        b'{"a": [' + b"1,,2" * 300 + b"]}",
        b'{"a": ["\xff"]}',
        b'{"a"' * 70_000,
        b'"' * 300_000,
        b'{"a": ' + b"[1," * 200_000,
        b"\xff\xfe{\x00",
        b"\x00\x00\x00",
        b'{"seed": ' + b"9" * 2**20 + b"}",
        b'{"ids": [1,' + b"9" * 2**20 + b"]}",
    ],
)
def test_invalid_json_is_a_client_error(body: bytes) -> None:
    for limits in (LIMITS, BodyLimits(max_values=1000)):
        with pytest.raises(ClientError):
            read_document(body, limits)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_every_encoding_of_json_is_read(encoding: str) -> None:
    assert read_document('{"a": "grün"}'.encode(encoding), LIMITS) == {"a": "grün"}


def test_a_body_is_cheap_to_parse_by_its_containers_and_its_length() -> None:
    assert is_cheap_to_parse(b'{"messages":[{"role":"user","content":"hi"}]}', 3)
    assert is_cheap_to_parse(b"[" + b"1," * 5000 + b"1]", 1)
    assert not is_cheap_to_parse(b"[" + b"{}," * 100 + b"{}]", 100)
    assert not is_cheap_to_parse(b'"' + b"x" * 2**17 + b'"', 100)


@pytest.mark.parametrize("name", [name for name in BODIES if "16 MiB" in name])
def test_reading_a_body_never_holds_the_interpreters_lock_for_long(name: str) -> None:
    """Measured in another thread, in the event loop's place; the least of four attempts, for a loaded machine."""
    body = BODIES[name].make()
    for _ in range(4):
        held_s, refused = _held_s(body)
        # A well-formed body within the limits is refused later, by the request model.
        assert not refused or BODIES[name].status in (REFUSED, 404)
        if held_s < 0.15:
            return
    raise AssertionError(f"the other thread waited for {held_s:.2f} s")


def _held_s(body: bytes) -> tuple[float, bool]:
    """The longest wait of another thread while the body is read, and whether the body is refused."""
    waits_s: list[float] = []
    done = threading.Event()

    def wait() -> None:
        while not done.is_set():
            before_s = time.perf_counter()
            time.sleep(0.001)
            waits_s.append(time.perf_counter() - before_s)

    watcher = threading.Thread(target=wait)
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)
    watcher.start()
    try:
        read_document(body, LIMITS)
    except ClientError:
        return max(waits_s), True
    finally:
        done.set()
        watcher.join()
        sys.setswitchinterval(before)
    return max(waits_s), False
