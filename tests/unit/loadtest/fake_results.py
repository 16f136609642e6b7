"""Results of simulated runs: a small seeded model of a server under load."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from math import exp, sin
from typing import Any

from loadtest.measure.histogram import Histogram
from loadtest.measure.result import (
    Check,
    Generator,
    Group,
    Integrity,
    LatencyStats,
    Outcome,
    Result,
    Run,
    Server,
    Summary,
    TimelineSecond,
    Verdict,
)
from loadtest.scenario.slo import Limit

METRICS = ("ttft", "itl", "tpot", "e2e")


@dataclass
class FakeSecond:
    due: int = 0
    ended: int = 0
    ok: int = 0
    cancelled: int = 0
    tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    times: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in METRICS})


def limit(name: str, metric: Any, quantile: Any, limit_ms: float) -> Limit:
    return Limit(name=name, metric=metric, quantile=quantile, limit=limit_ms)


def latency_stats(values_ms: list[float]) -> LatencyStats:
    """Of times in milliseconds."""
    stats = Histogram()
    for value in values_ms:
        stats.add(round(value * 1000))
    return LatencyStats.from_histogram(stats)


EMPTY = latency_stats([])


def summary(**changes: object) -> Summary:
    """Of a hundred successful requests; `changes` replace fields."""
    parts: dict[str, object] = {
        **dict.fromkeys(("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"), latency_stats([float(i) for i in range(1, 101)])),
        **dict.fromkeys(("ttft_from_sent_ms", "e2e_from_sent_ms", "max_stall_ms"), EMPTY),
        "requests": 100, "ok": 100, "cancelled_by_plan": 0, "errors_by_kind": {}, "good": 100, "output_tokens": 5000,
        "input_tokens": 1000, "output_tokens_per_s": 500.0, "achieved_rps": 10.0, "asked_rps": 10.0,
        "goodput_rps": 10.0,
    }  # fmt: skip
    return Summary.model_validate({**parts, **changes})


def generator(**changes: object) -> Generator:
    """Of a generator without lateness."""
    parts: dict[str, object] = {
        "workers": 2, "lateness_ms": latency_stats([0.2] * 99 + [3.0]),
        "loop_lag_ms": latency_stats([0.1] * 99 + [2.0]),
        "cpu_share_max": 0.41, "dropped_arrivals": 0, "events": 123_456, "cpu_us_per_event": 43.2, "invalid": [],
    }  # fmt: skip
    return Generator.model_validate({**parts, **changes})


def integrity(**changes: object) -> Integrity:
    """Of complete and correct streams."""
    parts: dict[str, object] = {
        "checked_streams": 100, "verified_tokens": 5000, "violations": {}, "examples": [], "freed_after_cancels": None,
    }  # fmt: skip
    return Integrity.model_validate({**parts, **changes})


def run(**changes: object) -> Run:
    """Of a chat against a server on this machine."""
    parts: dict[str, object] = {
        "scenario": "chat", "scenario_yaml": "arrivals:\n  poisson: {rate: 8}\nslo:\n  ttft_p99_ms: 500\n",
        "url": "http://127.0.0.1:8000", "model": "sluice-demo", "seed": 1, "started_at": "2026-11-25T21:00:00Z",
        "warmup_s": 5.0, "duration_s": 60.0, "command": "sluice-load run chat --url http://127.0.0.1:8000 --out out",
        "versions": {"python": "3.11.2", "locust": "2.47.0", "sluice": "0.1.0"}, "machine": "2 x Xeon 2.5 GHz, Linux",
    }  # fmt: skip
    return Run.model_validate({**parts, **changes})


def fake_result(
    seed: int = 1,
    *,
    seconds: int = 60,
    warmup: int = 5,
    drain: int = 3,
    rate: float = 8.0,
    slow: float = 1.0,
    errors: dict[str, float] | None = None,
    cancels: float = 0.0,
    closed: bool = False,
    scraped: bool = True,
    gaps: int = 20,
    tenants: tuple[str, ...] = ("free", "paid"),
) -> Result:
    """A run. `slow`: the factor by which everything takes longer; `errors`: shares of requests by kind; `gaps`: the
    number of different gaps in a stream. The server's speed varies from second to second, as that of real ones does."""
    rng = random.Random(seed)
    length = warmup + seconds + drain
    clock = [FakeSecond() for _ in range(length + 120)]
    groups = {(workload, tenant): FakeSecond() for workload in ("chat", "rag") for tenant in tenants}
    in_flight = [0] * len(clock)
    totals = {"requests": 0, "ok": 0, "cancelled": 0, "good": 0, "tokens": 0}
    failed: dict[str, int] = {}
    slowdown = 0.0
    for second in range(warmup + seconds):
        slowdown = 0.7 * slowdown + rng.gauss(0, 0.08)
        for _ in range(_poisson(rng, rate)):
            clock[second].due += 1
            measured = second >= warmup
            group = groups[rng.choice(("chat", "rag")), rng.choice(tenants)]
            totals["requests"] += measured
            group.due += measured
            kind = _draw_error_kind(rng, errors or {})
            if kind:
                clock[second].errors[kind] = clock[second].errors.get(kind, 0) + 1
                clock[second].ended += 1
                if measured:
                    failed[kind] = failed.get(kind, 0) + 1
                    group.errors[kind] = group.errors.get(kind, 0) + 1
                continue
            ttft = slow * rng.lognormvariate(4.2, 0.35) * exp(slowdown)
            gap = slow * 12.0 * exp(slowdown)
            tokens = max(2, min(400, round(rng.lognormvariate(4.0, 0.6))))
            left = rng.random() < cancels
            e2e = ttft + gap * (tokens - 1)
            end = min(int(second + rng.random() + e2e / 1000), len(clock) - 1)
            for second_at in range(second, end + 1):
                in_flight[second_at] += 1
                clock[second_at].tokens += round(tokens / (end + 1 - second))
            clock[end].ended += 1
            if left:
                clock[end].cancelled += 1
            else:
                clock[end].ok += 1
            times = {"ttft": [ttft], "tpot": [gap], "e2e": [e2e]}
            times["itl"] = [gap * rng.lognormvariate(0, 0.25) for _ in range(min(gaps, tokens - 1))]
            each = max(1, (tokens - 1) // len(times["itl"]))
            where = {"ttft": min(int(second + ttft / 1000), end), "itl": end, "tpot": end, "e2e": end}
            for name, values in times.items():
                for value in values:
                    weight = each if name == "itl" else 1
                    clock[where[name]].times[name].add(round(value * 1000), weight)
                    if measured:
                        group.times[name].add(round(value * 1000), weight)
            if measured:
                totals["cancelled" if left else "ok"] += 1
                totals["good"] += not left and ttft < 300
                totals["tokens"] += tokens
                group.tokens += tokens
                group.ok += not left
                group.cancelled += left

    stages = ["warmup"] * warmup + ["measure"] * seconds + ["drain"] * drain
    timeline = [
        TimelineSecond(
            t_s=second_at, stage=stage, due=s.due, sent=s.due, ended=s.ended, ok=s.ok, errors=s.errors,
            cancelled=s.cancelled, in_flight=in_flight[second_at], output_tokens=s.tokens,
            **{name: s.times[name].to_dict() for name in METRICS},
        )
        for second_at, (stage, s) in enumerate(zip(stages, clock, strict=False))
    ]  # fmt: skip
    overall = FakeSecond()
    for group in groups.values():
        for name in METRICS:
            overall.times[name].merge(group.times[name])
    return Result(
        schema="sluice-load/1",
        run=run(seed=seed, warmup_s=warmup, duration_s=seconds),
        summary=_summary(overall, seconds, rate=None if closed else rate, errors=failed, **totals),
        groups=[
            Group(
                workload=workload, tenant=tenant,
                summary=_summary(
                    s, seconds, rate=None if closed else rate / len(groups), errors=s.errors, requests=s.due, ok=s.ok,
                    cancelled=s.cancelled, good=s.ok, tokens=s.tokens,
                ),
            )
            for (workload, tenant), s in groups.items()
        ],
        timeline=timeline,
        generator=generator(),
        server=_server(length, in_flight) if scraped else Server(scraped=False, notes=["no answer from /metrics"]),
        integrity=integrity(checked_streams=totals["ok"]),
        verdict=Verdict(
            outcome=Outcome.PASS, exit_code=0, reasons=["ttft_p99_ms is 160 ms, limit 500 ms: met"],
            checks=[
                Check(name="ttft_p99_ms", limit=500, value=160.0, met=True, low=150.0, high=190.0),
                Check(name="itl_p99_ms", limit=40, value=28.0, met=True, low=27.0, high=29.0),
            ],
        ),
    )  # fmt: skip


def _summary(
    stats: FakeSecond, seconds: int, *, rate: float | None, errors: dict[str, int], requests: int, ok: int,
    cancelled: int, good: int, tokens: int,
) -> Summary:  # fmt: skip
    times = {name: LatencyStats.from_histogram(stats.times[name]) for name in METRICS}
    return summary(
        **{f"{name}_ms": times[name] for name in METRICS},
        ttft_from_sent_ms=times["ttft"], e2e_from_sent_ms=times["e2e"], max_stall_ms=times["tpot"],
        requests=requests, ok=ok, cancelled_by_plan=cancelled, errors_by_kind=errors, good=good,
        output_tokens=tokens, input_tokens=requests * 40, output_tokens_per_s=tokens / seconds,
        achieved_rps=requests / seconds, asked_rps=rate, goodput_rps=good / seconds,
    )  # fmt: skip


def _server(length: int, in_flight: list[int]) -> Server:
    times = [second_at + 0.02 for second_at in range(length)]
    series: dict[str, list[list[float]]] = {
        "sluice_streams_active": [[t, float(n)] for t, n in zip(times, in_flight, strict=False)],
        "vllm:num_requests_running": [[t, float(n)] for t, n in zip(times, in_flight, strict=False)],
        "vllm:num_requests_waiting": [[t, max(0.0, float(n - 6))] for t, n in zip(times, in_flight, strict=False)],
        "vllm:kv_cache_usage_perc": [[t, min(1.0, n / 20)] for t, n in zip(times, in_flight, strict=False)],
        "vllm:generation_tokens_total": [[t, 80.0 * n] for t, n in zip(times, in_flight, strict=False)],
        "sluice_loop_lag_seconds": [[t, 0.001 + 0.0005 * sin(t)] for t in times],
        "process_resident_memory_bytes": [[t, 1.2e9 + 1e6 * t] for t in times],
    }
    return Server(
        scraped=True, series=series, generated_tokens=25_120, client_tokens=25_000, ttft_gap_ms=1.4,
        gateway_overhead_ms=0.42,
    )  # fmt: skip


def _poisson(rng: random.Random, mean: float) -> int:
    """Knuth's algorithm: multiply uniform numbers until below exp(-mean)."""
    limit, product, count = exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def _draw_error_kind(rng: random.Random, errors: dict[str, float]) -> str | None:
    second_at = rng.random()
    for kind, share in errors.items():
        if second_at < share:
            return kind
        second_at -= share
    return None
