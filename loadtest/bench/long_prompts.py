"""Measures how long prompts delay the streams beside them: `python -m loadtest.bench.long_prompts`.

32 streams run all the time, paced by the engine (synthetic: real scheduler and transport, no model). In alternating
phases, prompts of 100,000 tokens arrive, one every half second, or they do not. There are four kinds of them: a chat of
one long message (`chat`), one of a thousand messages (`turns`), a completion's text (`text`) and its token ids (`ids`);
no two begin alike, so no prefix is cached. Printed per kind: the inter-token latency of the 32 streams without and with
them, and the ratios of the p99s, pair by pair, as median and range.

The front end's part of it shows in `/health`, requested every 10 ms: its answer comes from the event loop, without the
engine. The front end has a CPU of its own; engine and client share the other.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from loadtest.bench.client import quantile
from loadtest.bench.servers import MODEL, FrontEnd, split_cpus, start

CONTEXT = 131_072
STREAMS = 32
KINDS = ("chat", "turns", "text", "ids")
TURNS = 1000
PROBE_EVERY_S = 0.01
WORDS = "Tell me a story about a river that runs through the old town and never stops to ask why it runs at all . "
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"


def post(path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a request."""
    payload = json.dumps({"model": MODEL, "temperature": 0, **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}"
    return head.encode() + b"\r\n\r\n" + payload


class Prompts:
    """Long prompts, each different from its first token on."""

    def __init__(self, port: int, tokens: int) -> None:
        text = WORDS * (tokens // 16)
        self._ids = self._tokenize(port, text)
        self._text = text[: len(text) * tokens // len(self._ids)]
        self._ids = self._ids[:tokens]
        self._made = 0

    @staticmethod
    def _tokenize(port: int, text: str) -> list[int]:
        body = json.dumps({"model": MODEL, "prompt": text, "add_special_tokens": False}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/tokenize", body, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            tokens: list[int] = json.load(answer)["tokens"]
        return tokens

    def make(self, kind: str) -> bytes:
        """The request with the next prompt, for two tokens."""
        self._made += 1
        usual = {"stream": True, "max_tokens": 2, "ignore_eos": True}
        text = f"{self._made} {self._text}"
        if kind == "ids":
            cut = self._made * 17 % len(self._ids)
            return post(_COMPLETION, {**usual, "prompt": self._ids[cut:] + self._ids[:cut]})
        if kind == "text":
            return post(_COMPLETION, {**usual, "prompt": text})
        size = len(text) if kind == "chat" else -(-len(text) // TURNS)
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        roles = ("user", "assistant")
        turns = [{"role": roles[number % 2], "content": part} for number, part in enumerate(parts)]
        return post(_CHAT, {**usual, "messages": turns})


class StreamClient(asyncio.Protocol):
    """One request, read to its end. `on_events` is called for every read that brought events."""

    def __init__(self, request: bytes, on_events: Callable[[StreamClient, float], None]) -> None:
        self._request = request
        self._on_events = on_events
        self._tail = b""
        self.status = b""
        self.last_s = 0.0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.status = self.status or data[9:12]
        if b"data: " in data:
            self._on_events(self, now)
            self.last_s = now
        if b"data: [DONE]" in self._tail + data or self.status != b"200":
            self._transport.close()
        self._tail = data[-16:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(self.status)


class Phase:
    """The measurements of one phase, in seconds."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.probes: list[float] = []

    def figures(self) -> dict[str, float]:
        """Milliseconds."""
        named = (("itl", self.gaps), ("probe", self.probes))
        return {
            f"{name}_{label}_ms": quantile(values, q) * 1e3
            for name, values in named
            for label, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        }


class LongPromptBench:
    """The client's side of one server."""

    def __init__(self, server: FrontEnd, options: argparse.Namespace) -> None:
        self._port = server.port
        self._options = options
        self._phase: Phase | None = None
        self._prompts = Prompts(server.port, options.tokens)

    async def run(self, report: Callable[[str, list[tuple[Phase, Phase]]], None]) -> None:
        """All kinds, one after the other, beside the same streams."""
        options = self._options
        loop = asyncio.get_running_loop()
        lasting = {"stream": True, "max_tokens": CONTEXT - 1000, "ignore_eos": True, "prompt": "Tell me a story."}
        streams = [
            (
                await loop.create_connection(
                    lambda: StreamClient(post(_COMPLETION, lasting), self._on_events), "127.0.0.1", self._port
                )
            )
            for _ in range(STREAMS)
        ]
        probing = loop.create_task(self._probe())
        await asyncio.sleep(2)
        for kind in options.kinds:
            await self._run_phase(kind, options.seconds)
            pairs = []
            for turn in range(options.pairs):
                phases = {}
                for kind_ in (None, kind) if turn % 2 == 0 else (kind, None):
                    phases[kind_] = await self._run_phase(kind_, options.seconds)
                pairs.append((phases[None], phases[kind]))
            report(kind, pairs)
        probing.cancel()
        if any(protocol.done.done() for _, protocol in streams):
            raise SystemExit("a stream ended before the measurement did")
        for transport, _ in streams:
            transport.abort()

    def _on_events(self, listener: StreamClient, now: float) -> None:
        if self._phase is not None and listener.last_s:
            self._phase.gaps.append(now - listener.last_s)

    async def _run_phase(self, kind: str | None, seconds: float) -> Phase:
        """One phase, with prompts of that kind or without."""
        # Prepared in advance, so that this process only has to send them.
        count = int(seconds / self._options.every)
        requests = [] if kind is None else [self._prompts.make(kind) for _ in range(count)]
        await asyncio.sleep(0.3)
        loop = asyncio.get_running_loop()
        self._phase = phase = Phase()
        began = loop.time()
        sent = []
        for number in range(count):
            if requests:
                made = lambda request=requests[number]: StreamClient(request, lambda *_: None)  # noqa: E731
                sent.append((await loop.create_connection(made, "127.0.0.1", self._port))[1])
            await asyncio.sleep(began + (number + 1) * self._options.every - loop.time())
        self._phase = None
        for status in await asyncio.gather(*[client.done for client in sent]):
            if status != b"200":
                raise SystemExit(f"a prompt of the kind {kind} was answered with {status.decode()}")
        return phase

    async def _probe(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            phase, sent_s = self._phase, time.perf_counter()
            writer.write(b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            if phase is not None:
                phase.probes.append(time.perf_counter() - sent_s)


def print_kind(name: str, kind: str, pairs: list[tuple[Phase, Phase]]) -> dict[str, Any]:
    """Print one line: medians over the pairs, and the ratios of the p99s."""
    figures = [(without.figures(), beside.figures()) for without, beside in pairs]
    middle = [{key: statistics.median(pair[at][key] for pair in figures) for key in figures[0][0]} for at in (0, 1)]
    line = f"  {name:<8}{kind:<7}"
    for what in ("itl", "probe"):
        key = f"{what}_p99_ms"
        ratios = [beside[key] / without[key] for without, beside in figures]
        line += (
            f"{what} p50 {middle[0][what + '_p50_ms']:6.2f} {middle[1][what + '_p50_ms']:6.2f}"
            f"  p99 {middle[0][key]:6.2f} {middle[1][key]:6.2f}  max {middle[1][what + '_max_ms']:6.1f}"
            f"  x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})   "
        )
    print(line, flush=True)
    return {"server": name, "kind": kind, "pairs": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["sluice"], help="front ends: sluice, vllm, rust")
    parser.add_argument("--vllm-rs", type=Path, help="vLLM's Rust front end")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of a long prompt")
    parser.add_argument("--every", type=float, default=0.5, help="seconds from one long prompt to the next")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of a phase")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of phases for each kind")
    parser.add_argument("--step-ms", type=float, default=10.0, help="milliseconds of an engine step")
    parser.add_argument("--prefill-us", type=float, default=0.0, help="microseconds that a prompt token adds to a step")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    gc.disable()
    front, others = split_cpus()
    os.sched_setaffinity(0, others)
    results: list[dict[str, Any]] = []
    print("milliseconds, without and with long prompts; probe: /health beside them")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            server = start(name, Path(folder), options.vllm_rs, CONTEXT)
            try:
                server.wait_ready()
                server.pin(front, others)
                server.set_timing(step_ms=options.step_ms, prefill_us=options.prefill_us)

                def report(kind: str, pairs: list[tuple[Phase, Phase]], name: str = name) -> None:
                    results.append(print_kind(name, kind, pairs))

                uvloop.run(LongPromptBench(server, options).run(report))
            finally:
                server.stop()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
