"""Which rows a run has: numbers as words, for the page and for the summary alike. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.formatting import count, ms, number, share, signed
from loadtest.measure.quantile_ci import needed
from loadtest.measure.result import Check, Distribution, ErrorKind, Group, Outcome, Result, Summary

__all__ = [
    "HEADLINES",
    "Fairness",
    "cards",
    "checks",
    "errors",
    "fairness",
    "generator",
    "groups",
    "integrity",
    "latencies",
    "server",
    "weak",
]

HEADLINES = {
    Outcome.PASS: "Pass",
    Outcome.MISSED: "SLO missed",
    Outcome.INVALID: "Invalid: the generator did not keep up",
    Outcome.INTEGRITY: "Integrity violated",
}

_MEANINGS = {
    ErrorKind.CONNECT: "no connection could be made",
    ErrorKind.TLS: "the TLS handshake failed",
    ErrorKind.RESET: "the connection was reset or closed before an answer",
    ErrorKind.TIMEOUT_FIRST: "no first byte within the scenario's limit",
    ErrorKind.TIMEOUT_IDLE: "the stream was silent for longer than the limit",
    ErrorKind.DEADLINE: "the request took longer than its deadline",
    ErrorKind.HTTP_4XX: "refused as a bad request",
    ErrorKind.HTTP_429: "refused: too many requests of this client",
    ErrorKind.HTTP_503_SHED: "refused with 503: the server was full",
    ErrorKind.HTTP_5XX: "the server failed before the first token",
    ErrorKind.SSE_ERROR: "an error event amid the stream",
    ErrorKind.TRUNCATED: "the connection ended amid the stream",
    ErrorKind.NO_DONE: "the stream ended without [DONE]",
    ErrorKind.NO_FINISH: "the stream ended without a finish reason",
    ErrorKind.BAD_JSON: "an event was no JSON",
    ErrorKind.BAD_EVENT: "an event was not of the protocol",
    ErrorKind.USAGE_MISMATCH: "the usage is not what was received",
    ErrorKind.OUT_OF_ORDER: "events were missing, repeated or out of order",
    ErrorKind.CROSS_TALK: "events of another stream",
    ErrorKind.WRONG_TOKEN: "a token that the engine did not say",
    ErrorKind.DROPPED_ARRIVAL: "never sent: the generator had no room for it",
}

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fairness:
    """How evenly tenants are served: Jain's index, 1 when all are served alike, 1/n when one has everything (Jain,
    Chiu and Hawe, 1984)."""

    served: float | None
    """Of the shares of their requests that ended well."""
    soon: float | None
    """Of their mean times to the first token."""


def cards(found: Summary) -> list[tuple[str, str, str]]:
    """The handful of numbers on top: what, value, and what it is measured against."""
    errors = sum(found.errors_by_kind.values())
    asked = found.requests - found.cancelled_by_plan
    rate = "closed loop" if found.asked_rps is None else f"asked {number(found.asked_rps)}"
    left = f"{count(found.cancelled_by_plan)} cancelled by plan" if found.cancelled_by_plan else "none cancelled"
    return [
        ("Requests", count(found.requests), left),
        ("Ended well", count(found.ok), f"{share(found.ok / asked) if asked else '-'} of those not cancelled"),
        ("Errors", count(errors), share(errors / asked) if asked else "-"),
        ("Rate", f"{number(found.achieved_rps)}/s", rate),
        ("Goodput", f"{number(found.goodput_rps)}/s", f"{count(found.good)} within every limit"),
        ("Output tokens", f"{number(found.output_tokens_per_s)}/s", f"{count(found.output_tokens)} in all"),
    ]


def latencies(found: Summary) -> list[Row]:
    """One row for each time: name, count, mean, p50, p90, p95, p99, p99.9, max; in milliseconds. A percentile of too
    few values has a star."""
    rows: list[tuple[str, Distribution]] = [
        ("TTFT", found.ttft_ms),
        ("TTFT from sending", found.ttft_from_sent_ms),
        ("ITL", found.itl_ms),
        ("longest gap of a stream", found.max_stall_ms),
        ("TPOT", found.tpot_ms),
        ("E2E", found.e2e_ms),
        ("E2E from sending", found.e2e_from_sent_ms),
    ]
    return [(name, *_distribution(each)) for name, each in rows]


def weak(rows: Iterable[Row]) -> bool:
    """Whether any of these percentiles has a star."""
    return any(cell.endswith("*") for row in rows for cell in row)


def checks(found: Iterable[Check]) -> list[Row]:
    """One row for each limit: name, met or missed, value, limit, 95 % interval."""
    rows: list[Row] = []
    for check in found:
        latency = check.name.endswith("_ms")
        say = ms if latency else share
        interval = f"{_end(check.low)} to {_end(check.high)}" if latency else "-"
        limit = f"{'at least' if check.name == 'goodput' else 'at most'} {say(check.limit)}"
        rows.append((check.name, "met" if check.met else "missed", say(check.value), limit, interval))
    return rows


def errors(found: Summary) -> list[Row]:
    """One row for each kind, the most frequent first: kind, count, share of all requests, meaning."""
    kinds = sorted(found.errors_by_kind.items(), key=lambda pair: (-pair[1], pair[0]))
    known = {str(kind): text for kind, text in _MEANINGS.items()}
    return [
        (kind, count(times), share(times / found.requests) if found.requests else "-", known.get(kind, ""))
        for kind, times in kinds
    ]


def groups(found: Iterable[Group]) -> list[Row]:
    """One row for each workload and tenant."""
    return [
        (
            group.workload, group.tenant, count(s.requests), count(s.ok), count(sum(s.errors_by_kind.values())),
            number(s.ttft_ms.p50), number(s.ttft_ms.p99), number(s.itl_ms.p50), number(s.itl_ms.p99),
            number(s.e2e_ms.p50), number(s.e2e_ms.p99), number(s.output_tokens_per_s),
        )
        for group in found
        for s in (group.summary,)
    ]  # fmt: skip


def fairness(found: Iterable[Group]) -> Fairness | None:
    """Between tenants, all workloads of each together; None if there are not two."""
    parts: dict[str, list[Summary]] = {}
    for group in found:
        if group.summary.requests:
            parts.setdefault(group.tenant, []).append(group.summary)
    if len(parts) < 2:
        return None
    served = [
        _part(sum(s.ok for s in each), sum(s.requests - s.cancelled_by_plan for s in each)) for each in parts.values()
    ]
    soon = [
        _part(sum((s.ttft_ms.mean or 0) * s.ttft_ms.count for s in each), sum(s.ttft_ms.count for s in each))
        for each in parts.values()
    ]
    return Fairness(_jain(served), _jain(soon))


def generator(result: Result) -> list[Row]:
    """Name, value, what it means."""
    found = result.generator
    late, lag = found.lateness_ms, found.loop_lag_ms
    return [
        ("workers", count(found.workers), "processes that generated the load"),
        ("lateness p50 / p99 / max", _three(late), "from the intended start to the first byte sent"),
        ("loop lag p50 / p99 / max", _three(lag), "how late the generator's own timers woke"),
        ("CPU", share(found.cpu_share_max), "of one core, the busiest five seconds of the busiest worker"),
        ("dropped arrivals", count(found.dropped_arrivals), "due and never sent"),
        ("events", count(found.events), "server-sent events received"),
        ("CPU per event", "-" if found.cpu_us_per_event is None else f"{number(found.cpu_us_per_event, 3)} µs", ""),
    ]


def server(result: Result) -> list[Row]:
    """Name, value, what it means: the server's own word beside the client's."""
    found = result.server
    apart = ""
    if found.generated_tokens and found.client_tokens is not None:
        apart = f"{signed((found.generated_tokens / found.client_tokens - 1) * 100) if found.client_tokens else '-'} % "
    return [
        ("tokens, by the server", count(found.generated_tokens), "its own counter over the run, warm-up included"),
        ("tokens, by the client", count(found.client_tokens), f"{apart}difference" if apart else ""),
        ("TTFT apart", "-" if found.ttft_gap_ms is None else f"{signed(found.ttft_gap_ms)} ms",
         "client's mean from sending, minus the server's own mean: network, and waiting before the server's clock"),
        ("gateway overhead", ms(found.gateway_overhead_ms), "mean time from arrival to the engine, without the queue"),
        *((name, number(value), "left over after the run") for name, value in sorted(found.left_over.items())),
    ]  # fmt: skip


def integrity(result: Result) -> list[Row]:
    """Name, value, what it means."""
    found = result.integrity
    freed = {None: "not asked", True: "yes", False: "no"}[found.freed_after_cancels]
    return [
        ("streams checked", count(found.checked_streams), "for [DONE], finish reason, usage, order and identity"),
        ("tokens verified", count(found.verified_tokens), "one by one, against what the engine must say"),
        ("violations", count(sum(found.violations.values())), ", ".join(sorted(found.violations))),
        ("freed after cancels", freed, "the server's gauges went back to what they were"),
    ]


def _distribution(found: Distribution) -> Row:
    percentiles = ((found.p50, 0.5), (found.p90, 0.9), (found.p95, 0.95), (found.p99, 0.99), (found.p999, 0.999))
    return (
        count(found.count),
        number(found.mean),
        *(number(value) + ("*" if 0 < found.count < needed(q) else "") for value, q in percentiles),
        number(found.max),
    )


def _end(value: float | None) -> str:
    return "unknown" if value is None else ms(value)


def _three(found: Distribution) -> str:
    return f"{number(found.p50, 3)} / {number(found.p99, 3)} / {number(found.max, 3)} ms" if found.count else "-"


def _part(some: float, of: float) -> float:
    return some / of if of else 0.0


def _jain(values: list[float]) -> float | None:
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None
