"""A client that leaves frees the engine at once: in every phase, for every kind of request and way of leaving, while
many other streams run undisturbed.

Measured is the time from just before the client's `close` (or `shutdown`, or `DELETE`) to the moment when the
scheduler in the engine process has dropped the request and freed its blocks, noted there by a plugin with the clock
that all processes share (`tests.support.engine_probe`). Nothing polls the server meanwhile. The engine looks at aborts
between two steps, so up to one whole step of that is the engine's own. At the gate, and while the engine is silent,
there is no such moment; there the gateway's end is the time of the request's log line.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.conftest import SYNTHETIC, Shared, Wanted
from tests.support.deterministic_text import expected_text
from tests.support.engine_probe import Note, Probe
from tests.support.server import CHAT, MODEL, Json, Raw, Server, poll, request_bytes
from tests.support.stream_client import COMPLETIONS, completion, prompt

pytestmark = pytest.mark.timeout(600)

SEED = 11
WAYS: dict[str, Callable[[Raw], None]] = {"fin": Raw.fin, "rst": Raw.rst, "half-close": Raw.half_close}
KINDS = ("chat", "completion", "formatted", "whole", "responses")
GOAL_MS = 100.0
ASPIRED_MS = 50.0
LIVE_TOKENS = 20_000
# What the tests leave carries its number as `max_tokens`, so that the engine's notes can be told apart.
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
    probe: Probe
    crowd: Crowd
    size: Size


def env(full: bool) -> dict[str, str]:
    size = SIZES[full]
    return {
        **SYNTHETIC,
        "SLUICE_SYNTHETIC__STEP_MS": str(size.step_ms),
        # Prompts come in small pieces that take their time, so that there is a prefill to leave in.
        "SLUICE_SYNTHETIC__PREFILL_US": "20",
        "SLUICE_ENGINE__MAX_NUM_BATCHED_TOKENS": str(size.batch),
        "SLUICE_LOG__JSON": "true",
    }


SERVERS = {"cancel": Wanted(env, probe=True)}


@pytest.fixture(scope="module")
def setup(fleet: dict[str, Shared], full: bool) -> Iterator[Setup]:
    """One server for all tests here, with its crowd."""
    server, probe, size = fleet["cancel"].server, fleet["cancel"].probe, SIZES[full]
    assert probe is not None
    crowd = Crowd(server.port, size.live)
    try:
        poll("all live streams have begun", crowd.have_begun, 60)
        yield Setup(server, probe, crowd, size)
    finally:
        crowd.stop()
        for one in crowd.streams:
            one.close()


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


def tell(figure: Any, setup: Setup, phase: str, found: dict[str, list[float]], step_ms: float | None) -> None:
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


def test_leaving_in_decode(setup: Setup, figure: Any) -> None:
    with leavers(setup) as who:
        for one in who:
            one.wait_begun()
        leave(setup, who)
        dropped = wait_dropped(setup, who)

    early = [one for one in who if any(note.output_tokens == 0 for note in dropped[one.number])]
    assert len(early) <= len(who) // 20, "they were to have tokens"
    tell(figure, setup, "decode", engine_latencies(who, dropped), setup.size.step_ms)
    assert setup.crowd.ended == []


def test_leaving_in_prefill(setup: Setup, figure: Any) -> None:
    """Prompts of thousands of tokens each, of which a step takes some hundred."""
    with leavers(setup, words=3000) as who:
        poll("the engine has all", lambda: in_engine(setup, who), 60, 0.05)
        leave(setup, who)
        dropped = wait_dropped(setup, who)

    silent = [one for one in who if all(note.output_tokens == 0 for note in dropped[one.number])]
    assert len(silent) >= len(who) // 2, "too many were through their prefill already"
    # A step that is full of prompt tokens takes longer by that much.
    step_ms = setup.size.step_ms + setup.size.batch * 0.02
    tell(figure, setup, "prefill", engine_latencies(silent, dropped), step_ms)
    assert setup.crowd.ended == []


def test_leaving_at_the_gate(setup: Setup, figure: Any) -> None:
    """Behind a request for every slot, while others run: no request overtakes it, so all later ones wait."""
    body = {**completion(0, 100, temperature=1), "n": int(SYNTHETIC["SLUICE_ADMISSION__MAX_CONCURRENT"])}
    with ExitStack() as stack:
        blocker = Raw(setup.server.port, request_bytes(body, COMPLETIONS))
        stack.callback(blocker.close)
        poll("one waits", lambda: setup.server.sample("sluice_requests_waiting") == 1, 10, 0.1)
        who = stack.enter_context(leavers(setup))
        poll("all wait", lambda: setup.server.sample("sluice_requests_waiting") == len(who) + 1, 10, 0.1)
        leave(setup, who)
        found = log_latencies(setup, who)
    poll("the queue is empty", lambda: setup.server.sample("sluice_requests_waiting") == 0, 5, 0.1)

    tell(figure, setup, "the queue (to the log line)", found, None)
    assert not setup.probe.of("add").keys() & {one.number for one in who}, "the engine never hears of them"
    assert setup.server.sample("sluice_streams_active") == setup.size.live


def test_leaving_while_the_engine_is_silent(setup: Setup, figure: Any) -> None:
    """The engine process is stopped, so no token comes and no write fails: only the reader's absence can tell."""
    engine = setup.server.engine_pid()
    with leavers(setup) as who:
        for one in who:
            one.wait_begun()
        os.kill(engine, signal.SIGSTOP)
        try:
            leave(setup, who)
            found = log_latencies(setup, who)
        finally:
            goes_on_s = time.monotonic()
            os.kill(engine, signal.SIGCONT)
        dropped = wait_dropped(setup, who)

    tell(figure, setup, "silence (to the log line)", found, None)
    after = [1000 * (note.at_s - goes_on_s) for one in who for note in dropped[one.number]]
    figure(
        "cancellation", "the engine drops them after it goes on", spread(after), f"a step of {setup.size.step_ms} ms"
    )
    assert setup.crowd.ended == []


@pytest.mark.parametrize("kind", ["chat", "completion", "formatted", "responses"])
def test_cancelling_by_id(setup: Setup, figure: Any, kind: str) -> None:
    """From sending `DELETE` to the engine's drop; who waits for a whole answer has not seen its id."""
    who: list[Leaver] = []
    answered_ms: list[float] = []
    with ExitStack() as stack:
        for _ in range(3 * setup.size.each):
            number = next(NUMBERS)
            path, body = request(kind, number, 3)
            connection = Raw(setup.server.port, request_bytes(body, path, {"Connection": "close"}))
            stack.callback(connection.close)
            who.append(Leaver(number, kind, "delete", connection))
        for one in who:
            one.wait_begun()
        ids = [_id(one.connection.seen, kind) for one in who]
        for one, stream_id in zip(who, ids, strict=True):
            one.left_s = time.monotonic()
            answer = setup.server.http.delete(f"/v1/streams/{stream_id}")
            answered_ms.append(1000 * (time.monotonic() - one.left_s))
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        dropped = wait_dropped(setup, who)
        for one in who:
            end = one.connection.read_all()
            assert b'"code":"cancelled"' in end or kind == "responses"
            assert b"response.completed" not in end

    values = engine_latencies(who, dropped)[kind]
    bound = f"p99 {GOAL_MS:.0f} ms + a step of {setup.size.step_ms}"
    figure("cancellation", f"DELETE to the engine's drop, {kind}", spread(values), bound)
    figure("cancellation", f"DELETE to its answer, {kind}", spread(answered_ms), "none")
    assert p99(values) <= GOAL_MS + setup.size.step_ms
    assert setup.crowd.ended == []


def _id(seen: bytes, kind: str) -> str:
    """As its client sees it: in the header, or, for a stream of vLLM's own, in the first event."""
    head, _, body = seen.partition(b"\r\n\r\n")
    if kind == "responses":
        line = next(line for line in body.split(b"\n") if line.startswith(b"data: {"))
        found: str = json.loads(line[6:])["response"]["id"]
        return found
    lines = head.decode().lower().split("\r\n")
    return next(line.split(": ", 1)[1] for line in lines if line.startswith("x-stream-id: "))


@pytest.fixture
def extras() -> Iterator[ExitStack]:
    """Connections that end with the test."""
    with ExitStack() as stack:
        yield stack


def test_a_storm_leaves_nothing_behind(setup: Setup, extras: ExitStack, figure: Any) -> None:
    """All at once, the crowd too; afterwards the engine itself knows of no request and has all its blocks."""
    server, probe, size = setup.server, setup.probe, setup.size
    assert setup.crowd.ended == []
    left = server.ended("disconnected")
    number = next(NUMBERS)
    extra: list[Raw] = []
    for i in range(size.live, size.storm):
        extra.append(Raw(server.port, request_bytes(completion(i, number), COMPLETIONS)))
        extras.callback(extra[-1].close)
    for one in extra:
        one.read_until(b"data: {")
    setup.crowd.stop()
    assert setup.crowd.ended == []
    figure("cancellation", f"of {size.live} streams that stayed, inexact", str(len(setup.crowd.inexact())), "0")
    assert setup.crowd.inexact() == []

    ways = list(WAYS.values())
    before = len(probe.of("drop").get(LIVE_TOKENS, []))
    began_s = time.monotonic()
    for i, one in enumerate([*extra, *setup.crowd.streams]):
        ways[i % 3](one)

    def notes() -> list[Note] | None:
        dropped = probe.of("drop")
        found = [*dropped.get(LIVE_TOKENS, [])[before:], *dropped.get(number, [])]
        return found if len(found) == size.storm else None

    found = poll("the engine has dropped all", notes, 60, 0.05)
    seconds = max(note.at_s for note in found) - began_s
    # 8,000 within 3 s, and the engine's step, which does not shrink with their number.
    scaled_s = 3 * size.storm / 8000 + size.step_ms / 1000
    figure(
        "cancellation",
        f"{size.storm} leave at once: all dropped",
        f"{seconds:.2f} s",
        f"{scaled_s:.2f} s (3 s for 8,000)",
    )
    poll("no slot is taken", lambda: server.sample("sluice_streams_active") == 0, 5, 0.1)
    poll("all are counted", lambda: server.ended("disconnected") == left + size.storm, 5, 0.1)
    poll("the gauges say so", lambda: server.sample("vllm:num_requests_running") == 0, 5, 0.1)
    now = server.samples()
    assert (now["sluice_requests_waiting"], now["vllm:num_requests_waiting"], now["vllm:kv_cache_usage_perc"]) == (
        0,
        0,
        0,
    )
    # The gauges are set to zero when the gateway knows of no request; the engine's own count is proof.
    last = next(NUMBERS)
    assert server.post(COMPLETIONS, **{**completion(1, last), "max_tokens": 7, "stream": False}).status_code == 200
    (note,) = probe.of("add")[7]
    assert (note.known, note.kv_usage) == (0, 0)
    assert seconds <= 3
    assert "Traceback" not in server.stderr()
