"""Throughput and cancel latency of a running server: `python -m loadtest.bench.basics --url http://127.0.0.1:8000`.

- tokens/s at 1, 16 and 64 streams (or `--streams`), with TTFT and ITL; one warm-up round, then medians of `--rounds`.
- cancel latency with 50 live streams: one client closes its socket; the sample is the time until the engine reports one
  running request less (`vllm:num_requests_running`, which each engine step writes). The poll of /metrics is part of it
  (one every 10 ms, each taking the printed poll_p50), so the figures are upper bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import time

from loadtest.bench.client import Target, open_stream, quantile, run_stream

POLL_EVERY_S = 0.01
_RUNNING = re.compile(rb"^vllm:num_requests_running\{[^}]*\} ([0-9.]+)", re.M)


async def throughput(target: Target, streams: int, max_tokens: int, rounds: int) -> dict[str, float]:
    """Tokens/s, TTFT and ITL of `streams` streams started together."""
    await asyncio.gather(*[run_stream(target, 16) for _ in range(streams)])
    rates, ttfts, gaps = [], [], []
    for _ in range(rounds):
        began = time.monotonic()
        samples = await asyncio.gather(*[run_stream(target, max_tokens) for _ in range(streams)])
        rates.append(streams * max_tokens / (time.monotonic() - began))
        if not all(sample.complete for sample in samples):
            raise SystemExit("a stream did not end with [DONE]")
        # Events: the role chunk, the tokens, [DONE].
        ttfts += [sample.events_s[1] - sample.sent_s for sample in samples]
        for sample in samples:
            gaps += [b - a for a, b in zip(sample.events_s[1:-2], sample.events_s[2:-1], strict=True)]
    return {
        "streams": streams,
        "tokens_per_s": round(statistics.median(rates)),
        "ttft_p50_ms": round(quantile(ttfts, 0.5) * 1e3, 1),
        "ttft_p99_ms": round(quantile(ttfts, 0.99) * 1e3, 1),
        "itl_p50_ms": round(quantile(gaps, 0.5) * 1e3, 2),
        "itl_p99_ms": round(quantile(gaps, 0.99) * 1e3, 2),
    }


class RunningGauge:
    """A keep-alive connection that reads one gauge."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def __aenter__(self) -> RunningGauge:
        self._reader, self._writer = await asyncio.open_connection(self._target.host, self._target.port, limit=2**22)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def running(self) -> int:
        """`vllm:num_requests_running`."""
        self._writer.write(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        match = _RUNNING.search(await self._reader.readexactly(int(length[1])))
        return int(float(match[1])) if match else 0


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(2**16):
        pass


async def cancel_latency(target: Target, live: int, samples: int) -> dict[str, float]:
    """Close one of `live` streams at a time and wait until the engine has dropped it."""
    latencies, polls = [], []
    open_now = []
    async with RunningGauge(target) as metrics:

        async def add() -> None:
            reader, writer = await open_stream(target, 1900)
            open_now.append((writer, asyncio.create_task(_discard(reader))))

        async def settle(count: int) -> None:
            deadline = time.monotonic() + 10
            while await metrics.running() != count:
                if time.monotonic() > deadline:
                    raise SystemExit(f"the engine does not run {count} requests")

        for _ in range(live):
            await add()
        for _ in range(samples):
            await settle(live)
            writer, reading = open_now.pop(0)
            began = time.monotonic()
            writer.close()
            running = live
            while running >= live:
                # Rendering all metrics takes the server several milliseconds; polling without pause would slow down the
                # measured server.
                await asyncio.sleep(POLL_EVERY_S)
                sent = time.monotonic()
                running = await metrics.running()
                polls.append(time.monotonic() - sent)
            latencies.append(time.monotonic() - began)
            reading.cancel()
            await add()
        for writer, reading in open_now:
            writer.close()
            reading.cancel()
    return {
        "live_streams": live,
        "samples": samples,
        "p50_ms": round(quantile(latencies, 0.5) * 1e3, 1),
        "p99_ms": round(quantile(latencies, 0.99) * 1e3, 1),
        "max_ms": round(max(latencies) * 1e3, 1),
        "poll_p50_ms": round(quantile(polls, 0.5) * 1e3, 1),
    }


async def main() -> None:
    """Run both and print one JSON document a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="sluice-demo")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cancels", type=int, default=100, help="0 leaves cancel latency out")
    options = parser.parse_args()
    target = Target.from_url(options.url, options.model)
    for streams in options.streams:
        print(json.dumps(await throughput(target, streams, options.tokens, options.rounds)), flush=True)
    if options.cancels:
        print(json.dumps({"cancel": await cancel_latency(target, 50, options.cancels)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
