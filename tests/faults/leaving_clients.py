"""Clients that leave in the middle of their requests, beside a crowd of streams; when the engine dropped them."""

from __future__ import annotations

import json
import random
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.deterministic_text import expected_text
from tests.support.engine_probe import EngineProbe, Note
from tests.support.server import CHAT, MODEL, Json, Raw, Server, poll, request_bytes
from tests.support.stream_client import COMPLETIONS, completion, prompt

SEED = 11


WAYS: dict[str, Callable[[Raw], None]] = {"fin": Raw.fin, "rst": Raw.rst, "half-close": Raw.half_close}


KINDS = ("chat", "completion", "formatted", "whole", "responses")


GOAL_MS = 100.0


ASPIRED_MS = 50.0


LIVE_TOKENS = 20_000


# Each request has a number of its own as `max_tokens`, by which the engine's notes are assigned to it.
NUMBERS = iter(range(5_000, LIVE_TOKENS))


@dataclass(frozen=True)
class Size:
    """`live` streams stay; `each` is how many requests of one kind leave in one way, `storm` how many at once; a step
    takes `step_ms` and `batch` tokens at most."""

    live: int
    each: int
    storm: int
    step_ms: int
    batch: int


SIZES = {False: Size(200, 4, 500, 50, 2048), True: Size(1000, 50, 2000, 250, 4096)}
"""By whether it is the full one."""


class Crowd:
    """Streams that stay, read all the time by a thread of their own."""

    def __init__(self, port: int, count: int) -> None:
        self.streams = [Raw(port, request_bytes(completion(i, LIVE_TOKENS), COMPLETIONS)) for i in range(count)]
        self.ended: list[int] = []
        self._seen = [bytearray() for _ in self.streams]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, one in enumerate(self.streams):
                one.sock.setblocking(False)
                selector.register(one.sock, selectors.EVENT_READ, number)
            while not self._stop.is_set():
                for key, _ in selector.select(0.1):
                    try:
                        part = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    except OSError:
                        part = b""
                    self._seen[key.data] += part
                    if not part:
                        selector.unregister(key.fileobj)
                        self.ended.append(key.data)

    def have_begun(self) -> bool:
        return all(b"data: {" in seen for seen in self._seen)

    def stop(self) -> None:
        """Read no more; the connections stay open."""
        self._stop.set()
        self._thread.join()

    def inexact(self) -> list[int]:
        """Those whose text so far is not what their tokens must read like."""
        return [number for number in range(len(self.streams)) if not self._exact(number)]

    def _exact(self, number: int) -> bool:
        # A write is one chunk and holds whole events, so a line that begins like one and has an end is one.
        lines = self._seen[number].split(b"\n")[:-1]
        documents = [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
        text = "".join(document["choices"][0]["text"] for document in documents)
        return bool(text) and expected_text(prompt(number), 10 * len(documents)).startswith(text)


@dataclass
class Setup:
    server: Server
    probe: EngineProbe
    crowd: Crowd
    size: Size


@dataclass
class Leaver:
    """One request that will be left."""

    number: int
    kind: str
    way: str
    connection: Raw
    left_s: float = 0.0
    left_wall_s: float = 0.0

    @property
    def sequences(self) -> int:
        """How many requests of the engine's it is."""
        return 2 if self.kind == "formatted" and self.number % 2 else 1

    @property
    def request_id(self) -> str:
        return f"leaver-{self.number}"

    def wait_begun(self) -> None:
        """Wait for a token; a whole answer shows none."""
        if self.kind != "whole":
            self.connection.read_until(b"output_text.delta" if self.kind == "responses" else b"data: {")

    def leave(self) -> None:
        self.left_s, self.left_wall_s = time.monotonic(), time.time()
        WAYS[self.way](self.connection)


def request(kind: str, number: int, words: int) -> tuple[str, Json]:
    """Path and body of a request that would run for minutes."""
    text = f"{number} " + "word " * words
    usual: Json = {"model": MODEL, "ignore_eos": True, "stream": kind != "whole"}
    if kind == "responses":
        return "/v1/responses", {**usual, "input": text, "max_output_tokens": number}
    if kind == "completion":
        return COMPLETIONS, {**usual, "prompt": text, "max_tokens": number}
    chat = {**usual, "messages": [{"role": "user", "content": text}], "max_tokens": number}
    if kind == "formatted":
        # Half of them for their log probabilities, half for their second choice.
        chat |= {"n": 2} if number % 2 else {"logprobs": True, "top_logprobs": 2}
    return CHAT, chat


@contextmanager
def leavers(setup: Setup, *, words: int = 3, kinds: tuple[str, ...] = KINDS) -> Iterator[list[Leaver]]:
    """Some of every kind for every way, sent; whole answers first, so that they are as far as the streams."""
    with ExitStack() as stack:
        found = []
        for kind in sorted(kinds, key=lambda kind: kind != "whole"):
            for way in WAYS:
                for _ in range(setup.size.each):
                    number = next(NUMBERS)
                    path, body = request(kind, number, words)
                    headers = {"X-Request-Id": f"leaver-{number}"}
                    connection = Raw(setup.server.port, request_bytes(body, path, headers))
                    stack.callback(connection.close)
                    found.append(Leaver(number, kind, way, connection))
        yield found


def leave(setup: Setup, who: list[Leaver]) -> None:
    """All leave one after the other in a random order, spread over some steps: an engine step has no favourite moment
    then. The pause is the pace of the load; nothing is waited for."""
    chance = random.Random(SEED)
    for one in chance.sample(who, len(who)):
        one.leave()
        time.sleep(chance.uniform(0, setup.size.step_ms / 4000))


def in_engine(setup: Setup, who: list[Leaver]) -> bool:
    added = setup.probe.of("add")
    return all(len(added.get(one.number, [])) == one.sequences for one in who)


def wait_dropped(setup: Setup, who: list[Leaver], within_s: float = 30) -> dict[int, list[Note]]:
    """The engine's notes of their ends."""

    def all_dropped() -> dict[int, list[Note]] | None:
        dropped = setup.probe.of("drop")
        return dropped if all(len(dropped.get(one.number, [])) == one.sequences for one in who) else None

    found: dict[int, list[Note]] = poll("the engine has dropped all", all_dropped, within_s)
    return found


def logged(setup: Setup, who: list[Leaver]) -> dict[str, Json]:
    """Their log lines, by request id."""
    wanted = {one.request_id for one in who}

    def lines() -> dict[str, Json] | None:
        entries = [json.loads(line) for line in setup.server.stderr().splitlines() if '"leaver-' in line]
        found = {entry["request_id"]: entry for entry in entries if entry["request_id"] in wanted}
        return found if found.keys() == wanted else None

    found: dict[str, Json] = poll("all have their log line", lines, 10, 0.1)
    return found


def spread(values_ms: list[float]) -> str:
    ordered = sorted(values_ms)
    p50, p99 = (ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99))
    return f"p50 {p50:.0f}, p99 {p99:.0f}, max {ordered[-1]:.0f} ms (n={len(ordered)})"


def p99(values_ms: list[float]) -> float:
    return sorted(values_ms)[min(len(values_ms) - 1, int(0.99 * len(values_ms)))]


def report(figure: Any, setup: Setup, phase: str, found: dict[str, list[float]], step_ms: float | None) -> None:
    """A line for every kind, one for all; and the goal itself, for all of the phase."""
    everything = [value for values in found.values() for value in values]
    step = "" if step_ms is None else f" + a step of {step_ms:.0f}"
    bound = f"p99 {GOAL_MS:.0f} ms{step}; aspired to {ASPIRED_MS:.0f}{step}"
    for kind, values in found.items():
        figure("cancellation", f"leaving in {phase}, {kind}", spread(values), bound)
    figure("cancellation", f"leaving in {phase}, all kinds, {setup.size.live} others live", spread(everything), bound)
    assert p99(everything) <= GOAL_MS + (step_ms or 0), found


def engine_latencies(who: list[Leaver], dropped: dict[int, list[Note]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in who:
        last_s = max(note.at_s for note in dropped[one.number])
        found.setdefault(one.kind, []).append(1000 * (last_s - one.left_s))
    return found


def log_latencies(setup: Setup, who: list[Leaver]) -> dict[str, list[float]]:
    entries = logged(setup, who)
    found: dict[str, list[float]] = {}
    for one in who:
        assert entries[one.request_id]["cause"] == "disconnected", entries[one.request_id]
        # Log lines have a resolution of a millisecond.
        found.setdefault(one.kind, []).append(1000 * (entries[one.request_id]["ts"] - one.left_wall_s) + 0.5)
    return found
