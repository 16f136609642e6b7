"""Measures how fast a saturated server answers `/livez`: `python -m loadtest.bench.livez`.

`load_client` reads streams at full speed from an engine that takes no time (synthetic, step_ms 0) while `/livez` is
requested every 20 ms. Its answer comes from the event loop that serves the streams, so a kubelet sees the same delay.
Printed per number of streams: the duration of the answers, and `sluice_loop_lag_seconds` of the same time. The front
end has a CPU of its own; engine and clients share the other.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from loadtest.bench.client import quantile
from loadtest.bench.servers import FrontEnd, split_cpus, start

ASK_EVERY_S = 0.02
TOKENS = 400_000
_LAG = re.compile(r'^sluice_loop_lag_seconds_bucket\{le="([^"]+)"\} ([0-9.]+)', re.M)


async def get(port: int, path: str) -> bytes:
    """The body at a path, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise SystemExit(f"{path} was answered with {head[:40]!r}")
        return await reader.read(-1)
    finally:
        writer.close()


async def lag_buckets(port: int) -> dict[float, float]:
    """The cumulative counts of the loop lag's histogram, by upper bound in seconds."""
    return {float(bound): float(count) for bound, count in _LAG.findall((await get(port, "/metrics")).decode())}


async def measure(server: FrontEnd, streams: int, tokens: int) -> dict[str, float]:
    """One run of the client. Raises SystemExit if a stream, or the server, fails."""
    before = await lag_buckets(server.port)
    argv = ["-m", "loadtest.bench.load_client", str(server.port), str(streams), str(tokens)]
    client = await asyncio.create_subprocess_exec(sys.executable, *argv, stdout=asyncio.subprocess.PIPE)
    await asyncio.sleep(0.5)
    durations_s = []
    while client.returncode is None:
        sent_s = time.perf_counter()
        await get(server.port, "/livez")
        durations_s.append(time.perf_counter() - sent_s)
        await asyncio.sleep(ASK_EVERY_S)
    output, _ = await client.communicate()
    after = await lag_buckets(server.port)
    seen = {bound: after[bound] - before[bound] for bound in after}
    late = next(bound for bound, count in seen.items() if count >= 0.99 * max(seen.values()))
    figures: dict[str, float] = json.loads(output)
    return {
        "streams": streams,
        "tokens_per_s": round(figures["tokens_per_s"]),
        "asked": len(durations_s),
        "livez_p50_ms": round(quantile(durations_s, 0.5) * 1e3, 1),
        "livez_p99_ms": round(quantile(durations_s, 0.99) * 1e3, 1),
        "livez_max_ms": round(max(durations_s) * 1e3, 1),
        "loop_lag_p99_at_most_ms": late * 1e3,
    }


async def run(server: FrontEnd, options: argparse.Namespace) -> None:
    """All numbers of streams, in turn."""
    for turn in range(options.rounds + 1):
        for streams in options.streams:
            figures_ = await measure(server, streams, max(16, TOKENS // streams // (1 if turn else 8)))
            if turn:
                print(json.dumps(figures_), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    gc.disable()
    front, others = split_cpus()
    os.sched_setaffinity(0, others)
    with tempfile.TemporaryDirectory() as folder:
        server = start("sluice", Path(folder))
        try:
            server.wait_ready()
            server.pin(front, others)
            asyncio.run(run(server, options))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
