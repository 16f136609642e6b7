"""Compares front ends on the same engine: `make bench`, or `python -m loadtest.bench.frontend`.

Ours, vLLM's Python server, and vLLM's Rust front end where `--vllm-rs` names its binary. All run at the same time, each
with an engine of its own (synthetic: real scheduler and transport, no model), and are measured in turn, round by round,
so that other load on the machine affects all of them. The front end has a CPU of its own; engine and client share the
other.

- saturation: all streams at full speed, most of them read lazily (`load_client`). Tokens/s, CPU microseconds per token
  of the front end (/proc), TTFT.
- half load: the engine paced so that the slowest front end would be half busy; the same load for all, and every token
  read at once. ITL, TTFT. Beside the CPU per token stands the part of it that the requests themselves do not cause.
- requests: two tokens each, CPU microseconds per request.

A change against the commit before it, in two checkouts: `--only sluice before --before ../old`.

To obtain the Rust binary: `pip download vllm==0.32.0 --no-deps -d w && unzip -j w/vllm-*.whl vllm/vllm-rs -d bin`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadtest.bench.servers import CONTEXT, FrontEnd, split_cpus, start

STREAMS = (1, 32, 256, 1024)
# The approximate number of tokens of a measurement, whatever the number of streams; and the bounds for one stream.
TOKENS = 60_000
FEWEST, MOST = 256, 4000
PACED_S = 8.0
REQUESTS = 256
PROMPT_AT_MOST = 1024


def measure(
    server: FrontEnd, streams: int, tokens: int, client_cpus: set[int], *, lazy: bool = False
) -> dict[str, float]:
    """Run the client process once, with the CPU time that the front end used meanwhile."""
    argv = [sys.executable, "-m", "loadtest.bench.load_client", str(server.port), str(streams), str(tokens)]
    if lazy:
        argv.append("--lazy")
    if server.name.endswith("-resumable"):
        argv.append("X-Stream-Resumable: 5")
    before, engine_before = server.cpu_s(), server.engine_cpu_s()
    cpus = ",".join(map(str, client_cpus))
    ran = subprocess.run(["taskset", "-c", cpus, *argv], check=True, capture_output=True, text=True)
    used, engine_used = server.cpu_s() - before, server.engine_cpu_s() - engine_before
    figures: dict[str, float] = json.loads(ran.stdout)
    figures["cpu_us_per_token"] = used / figures["tokens"] * 1e6
    figures["front_busy"] = used / figures["elapsed_s"]
    figures["engine_busy"] = engine_used / figures["elapsed_s"]
    return figures


def cpu_per_request(servers: list[FrontEnd], rounds: int, client_cpus: set[int]) -> dict[str, float]:
    """CPU microseconds of the front end per request: of streams of two tokens, `REQUESTS` at once."""
    figures: dict[str, list[float]] = {server.name: [] for server in servers}
    for server in servers:
        server.set_timing(step_ms=1)
        measure(server, REQUESTS, 2, client_cpus)
    for turn in range(rounds):
        for server in servers if turn % 2 == 0 else reversed(servers):
            run = measure(server, REQUESTS, 2, client_cpus)
            figures[server.name].append(run["cpu_us_per_token"] * 2)
    return {name: statistics.median(values) for name, values in figures.items()}


def compare(
    servers: list[FrontEnd], streams: int, rounds: int, client_cpus: set[int], per_request: dict[str, float]
) -> dict[str, Any]:
    """Saturation, then half load, in interleaved rounds. `per_request` as from `cpu_per_request`."""
    tokens = max(FEWEST, min(MOST, TOKENS // streams))
    saturated: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for server in servers:
        server.set_timing()
        measure(server, streams, max(16, tokens // 8), client_cpus)
    for turn in range(rounds):
        for server in servers if turn % 2 == 0 else reversed(servers):
            saturated[server.name].append(measure(server, streams, tokens, client_cpus, lazy=True))
    slowest = min(_median(runs, "tokens_per_s") for runs in saturated.values())
    step_s = streams / (slowest / 2)
    paced: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    paced_tokens = min(CONTEXT - PROMPT_AT_MOST, max(8, round(PACED_S / step_s)))
    for server in servers:
        server.set_timing(step_ms=step_s * 1e3)
    for turn in range(rounds):
        for server in servers if turn % 2 == 0 else reversed(servers):
            paced[server.name].append(measure(server, streams, paced_tokens, client_cpus))
    for server in servers:
        for run in paced[server.name]:
            run["cpu_us_per_token_alone"] = run["cpu_us_per_token"] - per_request[server.name] / paced_tokens
    return {
        "streams": streams,
        "tokens_per_stream": tokens,
        "half_load_step_ms": step_s * 1e3,
        "saturated": saturated,
        "half_load": paced,
        "peak_rss_mb": {server.name: server.peak_rss_mb() for server in servers},
    }


def _median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


# Title, key, format; the first group is from saturation, the second from half load.
_SATURATED = (
    ("tokens/s", "tokens_per_s", "10.0f"),
    ("us/token", "cpu_us_per_token", "10.1f"),
    ("busy", "front_busy", "6.2f"),
    ("TTFT50", "ttft_p50_ms", "8.1f"),
    ("TTFT99", "ttft_p99_ms", "8.1f"),
)
_HALF = (
    ("us/token", "cpu_us_per_token", "10.1f"),
    ("alone", "cpu_us_per_token_alone", "8.1f"),
    ("ITL50", "itl_p50_ms", "8.2f"),
    ("ITL99", "itl_p99_ms", "8.2f"),
    ("TTFT50", "ttft_p50_ms", "8.1f"),
    ("TTFT99", "ttft_p99_ms", "8.1f"),
)


def report(result: dict[str, Any]) -> None:
    """Print one table: medians, then ratios of ours to the others, pair by pair, as median and range."""
    saturated, paced = result["saturated"], result["half_load"]
    step_ms = result["half_load_step_ms"]
    print(f"\n{result['streams']} streams (half load: one token per stream every {step_ms:.2f} ms)")
    titles = ["".join([f"{title:>{form.split('.')[0]}}" for title, _, form in group]) for group in (_SATURATED, _HALF)]
    print(f"  {'':<12}{titles[0]}  |{titles[1]}{'RSS MB':>8}")
    for name, runs in saturated.items():
        full = "".join([format(_median(runs, key), form) for _, key, form in _SATURATED])
        half = "".join([format(_median(paced[name], key), form) for _, key, form in _HALF])
        print(f"  {name:<12}{full}  |{half}{result['peak_rss_mb'][name]:>8.0f}")
    ours = next(iter(saturated))
    for name in list(saturated)[1:]:
        for load, runs, key in (
            ("saturated", saturated, "tokens_per_s"),
            ("saturated", saturated, "cpu_us_per_token"),
            ("half load", paced, "cpu_us_per_token"),
            ("half load", paced, "cpu_us_per_token_alone"),
        ):
            pairs = [a[key] / b[key] for a, b in zip(runs[ours], runs[name], strict=True)]
            spread = f"{min(pairs):.2f} to {max(pairs):.2f}"
            print(f"  {ours} / {name}: {load}, {key} x {statistics.median(pairs):.2f} ({spread})")
    for name, runs in saturated.items():
        if _median(runs, "client_busy") + _median(runs, "engine_busy") > 0.95 and _median(runs, "front_busy") < 0.9:
            print(f"  note: {name} was not saturated: client and engine had no CPU left ({len(runs)} rounds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-rs", type=Path, help="vLLM's Rust front end")
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only",
        nargs="+",
        help="front ends, the first is compared with the others; sluice-resumable is sluice with resumable streams",
    )
    parser.add_argument(
        "--before",
        type=Path,
        help="another checkout of Sluice with a .venv; --only names it before or before-resumable",
    )
    parser.add_argument("--real", action="store_true", help="the demo model on the CPU instead of the synthetic engine")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    names = options.only or (["sluice", "vllm"] + (["rust"] if options.vllm_rs else []))
    if options.real:
        names = [f"{name}-real" for name in names if name != "rust"]
    front, others = split_cpus()
    with tempfile.TemporaryDirectory() as folder:
        servers: list[FrontEnd] = []
        try:
            for name in names:
                print(f"starting {name}", flush=True)
                servers.append(start(name, Path(folder), options.vllm_rs, before=options.before))
                servers[-1].wait_ready()
                servers[-1].pin(front, others)
            per_request = cpu_per_request(servers, options.rounds, others)
            for name, cpu_us in per_request.items():
                print(f"  {name:<12}{cpu_us:>8.0f} us of CPU a request")
            results = []
            for streams in options.streams:
                results.append(compare(servers, streams, options.rounds, others, per_request))
                report(results[-1])
        finally:
            for server in servers:
                server.stop()
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "machine": platform.platform(),
                    "cpus": os.cpu_count(),
                    "us_per_request": per_request,
                    "results": results,
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
