"""Compares the load generator with an independent client, `vllm bench serve`: `python -m loadtest.bench.agreement`.

Both load the same servers (the mock, and Sluice on its engine without a model) at the same constant rate with answers
of the same length, in turn, round by round, each round with its own seed. Medians over the rounds of TTFT, ITL and TPOT
(mean and p99) and tokens/s should agree within 5 %.

Differences that are removed first:
- Completions, not chats: a chat begins with a role chunk, which the other client takes for the first token. On servers
  that send it at once its TTFT is then that of the role; `--role` shows that on the mock and leaves it out of the
  verdict.
- `return_token_ids`: tokens that complete no character come as events without text. The other client counts their gaps
  and ours would not, as they have no content; with ids in them both do.
- Tokens/s: the other client divides by the time to the last answer, ours by the time in which requests were due. Both
  are computed over the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gateway import demo
from loadtest.bench.servers import MODEL, start
from loadtest.measure.result import Result
from loadtest.mock.child import running_mock
from loadtest.mock.plan import MockPlan

TOLERANCE = 0.05
NUMBERS = ("ttft mean", "ttft p99", "itl mean", "itl p99", "tpot mean", "tpot p99", "tokens/s")
# Both clients share a core, and the measurement must not depend on their load.
RATE, TOKENS, PROMPT, WARMUP = 10.0, 64, 32, 20
PLAN = {
    "model": MODEL,
    "ttft_ms": {"kind": "lognormal", "mean": 120, "cv": 0.5},
    "itl_ms": {"kind": "lognormal", "mean": 25, "cv": 0.3},
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server under load. `open` gives its URL for one run."""

    name: str
    open: Callable[[], AbstractContextManager[str]]
    chat: bool = False


def run_vllm_bench(url: str, chat: bool, seed: int, seconds: float, folder: Path, cpus: set[int]) -> dict[str, float]:
    count = round(RATE * seconds)
    endpoint, backend = ("chat/completions", "openai-chat") if chat else ("completions", "openai")
    argv = [
        sys.executable, "-m", "loadtest.bench.vllm_command", "bench", "serve",
        "--backend", backend, "--base-url", url, "--endpoint", f"/v1/{endpoint}",
        "--model", MODEL, "--tokenizer", str(demo.MODEL_PATH), "--dataset-name", "random", "--seed", str(seed),
        "--random-input-len", str(PROMPT), "--random-output-len", str(TOKENS), "--num-prompts", str(count),
        "--request-rate", str(RATE), "--burstiness", "inf", "--num-warmups", str(WARMUP), "--ignore-eos",
        "--extra-body", '{"return_token_ids": true}', "--percentile-metrics", "ttft,tpot,itl",
        "--metric-percentiles", "99", "--disable-tqdm", "--ready-check-timeout-sec", "0",
        "--save-result", "--result-dir", str(folder), "--result-filename", "others.json",
    ]  # fmt: skip
    _run(argv, cpus, {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    output = json.loads((folder / "others.json").read_text(encoding="utf-8"))
    if output["completed"] != count:
        raise SystemExit(f"vllm bench serve completed {output['completed']} of {count} requests")
    figures = {
        f"{name} {what}": output[f"{what}_{name}_ms"] for name in ("ttft", "itl", "tpot") for what in ("mean", "p99")
    }
    return figures | {
        "tokens/s": output["total_output_tokens"] / seconds,
        "tokens/s to the end": output["output_throughput"],
    }


def run_sluice_load(url: str, chat: bool, seed: int, seconds: float, folder: Path, cpus: set[int]) -> dict[str, float]:
    scenario: dict[str, Any] = {
        "name": "agreement",
        "seed": seed,
        "model": MODEL,
        "stages": {"warmup_s": WARMUP / RATE, "measure_s": seconds, "drain_s": 20},
        "load": {"kind": "constant", "rate": RATE},
        "workloads": [
            {
                "name": "w",
                "endpoint": "chat" if chat else "completions",
                "prompt_tokens": PROMPT,
                "output_tokens": TOKENS,
                "body": {"return_token_ids": True},
            }
        ],
    }
    file = folder / "scenario.yaml"
    file.write_text(json.dumps(scenario), encoding="utf-8")
    _run(
        [sys.executable, "-m", "loadtest.cli", "run", str(file), "--url", url, "--out", str(folder / "out")],
        cpus,
        {},
        # An invalid run is still a number to compare.
        allowed=(0, 1, 3),
    )
    summary = Result.read(folder / "out" / "result.json").summary
    if summary.ok != summary.requests:
        raise SystemExit(f"our client completed {summary.ok} of {summary.requests} requests: {summary.errors_by_kind}")
    parts = {"ttft": summary.ttft_from_sent_ms, "itl": summary.itl_ms, "tpot": summary.tpot_ms}
    figures = {f"{name} {what}": getattr(part, what) for name, part in parts.items() for what in ("mean", "p99")}
    return figures | {"tokens/s": summary.output_tokens_per_s}


def _run(argv: list[str], cpus: set[int], env: dict[str, str], allowed: tuple[int, ...] = (0,)) -> None:
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **env}
    )
    os.sched_setaffinity(process.pid, cpus)
    output, _ = process.communicate()
    if process.returncode not in allowed:
        raise SystemExit(f"{' '.join(argv[:5])} ended with code {process.returncode}:\n{output[-3000:]}")


def median_figures(server: Server, count: int, seconds: float, cpus: set[int]) -> dict[str, tuple[float, float]]:
    """Medians of both clients, ours first."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "others": []}
    clients = {"ours": run_sluice_load, "others": run_vllm_bench}
    for turn in range(count):
        # Each is first in every other round.
        for name in sorted(clients, reverse=turn % 2 == 1):
            with tempfile.TemporaryDirectory() as folder, server.open() as url:
                runs[name].append(clients[name](url, server.chat, turn + 1, seconds, Path(folder), cpus))

    def median(name: str, number: str) -> float:
        return statistics.median(run[number] for run in runs[name])

    return {number: (median("ours", number), median("others", number)) for number in NUMBERS}


def report(server: Server, figures: dict[str, tuple[float, float]]) -> bool:
    """Print one table. Returns whether all numbers agree."""
    print(f"\n{server.name}\n{'':<12}{'sluice-load':>13}{'vllm bench':>13}{'ratio':>8}")
    met = True
    for number, (ours, others_value) in figures.items():
        agrees = abs(ours - others_value) <= TOLERANCE * others_value
        met = met and agrees
        print(f"{number:<12}{ours:>13.2f}{others_value:>13.2f}{ours / others_value:>8.3f}{'' if agrees else '  apart'}")
    return met


@contextmanager
def mock_url(cpus: set[int], **change: str) -> Iterator[str]:
    """A new mock for every run, so that both clients' requests draw the same times."""
    with tempfile.TemporaryDirectory() as folder:
        with running_mock(Path(folder), MockPlan.model_validate(PLAN | change), cpus) as child:
            yield child.url


@contextmanager
def sluice_url(cpus: set[int]) -> Iterator[str]:
    """Sluice on its engine without a model, a token every 20 ms."""
    with tempfile.TemporaryDirectory() as folder:
        server = start("sluice", Path(folder))
        try:
            server.wait_ready()
            server.pin(cpus, cpus)
            server.set_timing(step_ms=20.0, sequence_us=50.0)
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.stop()


def main() -> None:
    """Exit code 1 if a number disagrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", nargs="+", choices=("mock", "sluice"), default=["mock", "sluice"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--role", action="store_true", help="also measure a chat on a mock that sends the role at once")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("two CPUs are needed: one for the server, one for the clients")
    at, beside = {cpus[0]}, {cpus[1]}
    documents: dict[str, Any] = {}
    met = True

    def measure(server: Server) -> bool:
        documents[server.name] = figures = median_figures(server, options.rounds, options.seconds, beside)
        return report(server, figures)

    if "mock" in options.server:
        met = measure(Server("mock", partial(mock_url, at))) and met
    if "sluice" in options.server:
        with sluice_url(at) as url:
            met = measure(Server("sluice, synthetic engine", lambda: nullcontext(url))) and met
    if options.role:
        name = "mock, chat with an early role chunk (not in the verdict)"
        measure(Server(name, partial(mock_url, at, role="early"), chat=True))
    if options.json is not None:
        options.json.write_text(json.dumps(documents, indent=1), encoding="utf-8")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
