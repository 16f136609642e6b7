"""Parses the bytes of a request body at a bounded cost, whatever the bytes are.

`orjson.loads` holds the interpreter's lock while it runs: two seconds for 16 MiB of `[[],[],...`. So an upper bound on
the number of values is computed first, by counting bytes, which takes microseconds. Only if that exceeds the limits is
the body scanned exactly, in Python, so that the event loop can run meanwhile. Long lists of numbers, such as prompts of
token ids, are parsed in pieces and count as one value. The scan skips strings, so a prompt may be any text.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import ClientError
from gateway.offload import checkpoint

# A body of at most this size is parsed and validated on the event loop, which takes a millisecond; a thread costs
# 0.1 ms.
_LIGHT_BYTES = 64 * 2**10
# Lists of numbers from this size on are parsed separately, in pieces that take a millisecond each.
_LONG_LIST_BYTES = 256
_PIECE_BYTES = 128 * 2**10
_DIGITS = b"0123456789"
_NUMBERS = _DIGITS + b"+-.eE, \t\r\n"
# Bytes that are counted or matched in one call: 0.1 to 1 ms.
_WINDOW_BYTES = 256 * 2**10
_INSIDE_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.S)
_COLON = re.compile(rb"\s*:")
_MARK = secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits on a JSON document. `max_values`: members of objects and items of lists, where a list of numbers is one
    value; `max_numbers`: numbers in such lists together; `max_items`: items of one list or object that has other values
    than numbers; `max_depth`: levels; `max_stop_strings`: stop strings or bad words of a request."""

    max_values: int = 100_000
    max_numbers: int = 2_000_000
    max_items: int = 4096
    max_depth: int = 100
    max_stop_strings: int = 256


def is_cheap_to_parse(body: bytes, max_containers: int) -> bool:
    """Whether a body may be parsed on the event loop: it is short, and has at most `max_containers` lists and objects.
    Numbers and strings cost a tenth of those."""
    return len(body) <= _LIGHT_BYTES and body.count(b"[") + body.count(b"{") <= max_containers


def read_document(body: bytes, limits: BodyLimits) -> Any:
    """The document in a request body, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Raises ClientError
    with the position of a syntax error or the exceeded limit. To be called in a thread for a body that is not cheap to
    parse."""
    body = _as_utf8(body)
    bound, containers, has_digit_run = 0, 0, False
    for at in range(0, len(body), _WINDOW_BYTES):
        bound += _bound(body, at, at + _WINDOW_BYTES)
        containers += body.count(b"[", at, at + _WINDOW_BYTES) + body.count(b"{", at, at + _WINDOW_BYTES)
        has_digit_run = has_digit_run or _is_digit_run(body, at)
    if bound <= limits.max_values and not has_digit_run:
        document = _loads(body)
        if bound > limits.max_items or containers > limits.max_depth:
            document = _checked(document, limits, [])
        return document
    scan = _Scan(body, limits)
    scan.run()
    return _checked(_loads(b"".join(scan.parts)), limits, scan.lists)


def _bound(body: bytes, start: int, end: int) -> int:
    """An upper bound on the values in a part of JSON: each value follows a comma or an opening bracket, or is the only
    one."""
    return body.count(b",", start, end) + body.count(b"[", start, end) + body.count(b"{", start, end)


def _is_digit_run(body: bytes, at: int) -> bool:
    """Whether a whole window consists of digits. No number has that length, but the parser needs 0.1 s to refuse it."""
    window = body[at : at + _WINDOW_BYTES]
    return len(window) == _WINDOW_BYTES and not window.strip(_DIGITS)


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ClientError(f"The request body is not valid JSON: {error.msg} (at byte {error.pos}).") from None


def _as_utf8(body: bytes) -> bytes:
    """The same text in UTF-8. JSON begins with an ASCII character, so zeros among the first bytes show the encoding."""
    if body.startswith(b"\xef\xbb\xbf"):
        return body[3:]
    if b"\0" not in body[:4] and not body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return body
    encoding = json.detect_encoding(body)
    try:
        return body.decode(encoding).encode()
    except UnicodeError:
        raise ClientError(f"The request body is not valid JSON: it is not text in {encoding}.") from None


class _Scan:
    """Counts the values of a body exactly, and extracts long lists of numbers: `parts` is the body with a mark in place
    of each list, `lists` are the lists."""

    def __init__(self, body: bytes, limits: BodyLimits) -> None:
        self._body = body
        self._max = limits.max_values
        self._max_numbers = limits.max_numbers
        self._numbers_seen = 0
        self._values = 0
        self._depth = 0
        self._field = ""
        self._values_before = 0
        self._copied = 0
        self.parts: list[bytes] = []
        self.lists: list[list[Any]] = []

    def run(self) -> None:
        """Raises ClientError if there are too many values."""
        body, at, strings = self._body, 0, 0
        while True:
            quote = body.find(b'"', at)
            self._between(at, len(body) if quote < 0 else quote)
            if quote < 0:
                break
            at = self._end_of_string(quote + 1)
            if self._depth == 1 and _COLON.match(body, at):
                self._field = body[quote + 1 : min(at - 1, quote + 65)].decode(errors="replace")
                self._values_before = self._values
            strings += 1
            # Strings without commas between them are not JSON, and only this bounds their number.
            if strings > 2 * self._max + 2:
                raise self._too_many()
            if not strings % 1024:
                checkpoint()
        self.parts.append(body[self._copied :])

    def _end_of_string(self, at: int) -> int:
        body = self._body
        while True:
            end = min(at + _WINDOW_BYTES, len(body))
            match = _INSIDE_STRING.match(body, at, end)
            assert match is not None
            at = match.end()
            if at >= len(body):
                return len(body)
            if at < end and body[at] == 0x22:
                return at + 1
            checkpoint()
            # The window ended, possibly after a backslash.
            if at < end:
                at += 2

    def _between(self, start: int, end: int) -> None:
        """Count the part between two strings."""
        body = self._body
        at, close = start, -1
        while True:
            opening = body.find(b"[", at, end)
            if opening < 0:
                break
            if close < opening:
                close = body.find(b"]", opening, end)
                if close < 0:
                    break
            self._count(at, opening + 1)
            at = opening + 1
            is_long = close - opening >= _LONG_LIST_BYTES and body.find(b"[", at, close) < 0
            if is_long and self._is_of_numbers(at, close):
                self._extract(opening, close + 1)
                at = close
        self._count(at, end)

    def _count(self, start: int, end: int) -> None:
        body = self._body
        for at in range(start, end - _WINDOW_BYTES, _WINDOW_BYTES):
            if _is_digit_run(body, at):
                raise _too_many_digits(at)
        self._values += _bound(body, start, end)
        if self._values > self._max:
            raise self._too_many()
        self._depth += body.count(b"[", start, end) + body.count(b"{", start, end)
        self._depth -= body.count(b"]", start, end) + body.count(b"}", start, end)

    def _is_of_numbers(self, start: int, end: int) -> bool:
        return not any(
            self._body[at : min(end, at + _WINDOW_BYTES)].translate(None, _NUMBERS)
            for at in range(start, end, _WINDOW_BYTES)
        )

    def _extract(self, start: int, end: int) -> None:
        body = self._body
        self._numbers_seen += body.count(b",", start, end) + 1
        if self._numbers_seen > self._max_numbers:
            raise _too_large(self._field, f"more than {self._max_numbers} numbers in lists (server.max_json_numbers).")
        numbers: list[Any] = []
        at = start + 1
        while end - at > _PIECE_BYTES:
            comma = body.rfind(b",", at, at + _PIECE_BYTES)
            if comma < 0:
                raise _too_many_digits(at)
            numbers += self._numbers(at, comma)
            at = comma + 1
            checkpoint()
        numbers += self._numbers(at, end - 1)
        self.parts += (body[self._copied : start], b'["%s:%d"]' % (_MARK.encode(), len(self.lists)))
        self.lists.append(numbers)
        self._copied = end

    def _numbers(self, start: int, end: int) -> list[Any]:
        try:
            numbers: list[Any] = orjson.loads(b"[" + self._body[start:end] + b"]")
        except orjson.JSONDecodeError as error:
            at = start + error.pos - 1
            raise ClientError(f"The request body is not valid JSON: {error.msg} (at byte {at}).") from None
        if not numbers:
            # There is nothing between two commas.
            raise ClientError(f"The request body is not valid JSON: a number is missing (at byte {start}).")
        return numbers

    def _too_many(self) -> ClientError:
        # Only a field with more than half of all values is named.
        field = self._field if self._values - self._values_before > self._max // 2 else ""
        return _too_large(
            field, f"more than {self._max} JSON values (server.max_json_values); a list of numbers counts as one."
        )


def _too_large(field: str, text: str) -> ClientError:
    return ClientError(f"{f'{field}: ' if field else ''}The request body holds {text}", param=field or None)


def _too_many_digits(at: int) -> ClientError:
    return ClientError(f"The request body is not valid JSON: a number has too many digits (at byte {at}).")


def _checked(document: Any, limits: BodyLimits, lists: list[list[Any]]) -> Any:
    """The document, with the extracted lists in place. Raises ClientError if it exceeds a limit."""
    # Nested deeply, because a call for each container would nearly double the time.
    root = [document]
    # A container and its place: its key in its parent, and the place of that.
    level: list[tuple[Any, Any]] = [(root, None)]
    depth = 0
    while level:
        checkpoint()
        below: list[tuple[Any, Any]] = []
        for container, place in level:
            pairs = container.items() if isinstance(container, dict) else enumerate(container)
            for key, value in pairs:
                kind = type(value)
                if kind is list:
                    if len(value) == 1 and type(value[0]) is str and value[0].startswith(_MARK):
                        container[key] = lists[int(value[0][len(_MARK) + 1 :])]
                        continue
                    if value and type(value[0]) is int and _is_of_numbers(value):
                        continue
                elif kind is not dict:
                    continue
                here = (key, place)
                if len(value) > limits.max_items and not _is_of_numbers(value):
                    raise _too_long(_path(here), len(value), limits)
                below.append((value, here))
        depth += 1
        if depth > limits.max_depth and below:
            top = re.split(r"[.\[]", _path(below[0][1]), maxsplit=1)[0]
            raise ClientError(
                f"The request body nests deeper than {limits.max_depth} levels (server.max_json_depth).",
                param=top or None,
            )
        level = below
    return root[0]


def _is_of_numbers(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return set(map(type, items)) <= {int, float}


def _too_long(path: str, count: int, limits: BodyLimits) -> ClientError:
    where = f"{path} has" if path else "The request body has"
    return ClientError(
        f"{where} {count} items; at most {limits.max_items} are taken (server.max_json_items).", param=path or None
    )


def _path(place: Any) -> str:
    """The path to a container in a client's notation, without the first key, which is the root's."""
    keys = []
    while place is not None:
        key, place = place
        keys.append(key)
    keys.reverse()
    text = ""
    for key in keys[1:]:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text
