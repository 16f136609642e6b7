"""The rows of a run's tables, formatted, for the page and for the summary alike. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.formatting import format_count, format_ms, format_number, format_percent, format_signed
from loadtest.measure.quantile_ci import samples_needed
from loadtest.measure.result import Check, ErrorKind, Group, LatencyStats, Outcome, Result, Summary

__all__ = [
    "HEADLINES",
    "Fairness",
    "cards",
    "checks",
    "errors",
    "fairness",
    "generator",
    "groups",
    "has_few_samples",
    "integrity",
    "latencies",
    "server",
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
    ErrorKind.SSE_ERROR: "an error event within the stream",
    ErrorKind.TRUNCATED: "the connection ended within the stream",
    ErrorKind.NO_DONE: "the stream ended without [DONE]",
    ErrorKind.NO_FINISH: "the stream ended without a finish reason",
    ErrorKind.BAD_JSON: "an event was not JSON",
    ErrorKind.BAD_EVENT: "an event violated the protocol",
    ErrorKind.USAGE_MISMATCH: "the usage differs from the tokens received",
    ErrorKind.OUT_OF_ORDER: "events were missing, repeated or out of order",
    ErrorKind.CROSS_TALK: "events of another stream",
    ErrorKind.WRONG_TOKEN: "a token that the engine did not generate",
    ErrorKind.DROPPED_ARRIVAL: "never sent: too many requests were in flight",
}

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fairness:
    """How evenly tenants are served: Jain's index, 1 when all are served alike, 1/n when one has everything (Jain, Chiu
    and Hawe, 1984)."""

    served: float | None
    """Of the shares of their requests that ended well."""
    first_token: float | None
    """Of their mean times to the first token."""


def cards(found: Summary) -> list[tuple[str, str, str]]:
    """The numbers at the top: name, value, and the number to compare it with."""
    errors = sum(found.errors_by_kind.values())
    asked = found.requests - found.cancelled_by_plan
    rate = "closed loop" if found.asked_rps is None else f"asked {format_number(found.asked_rps)}"
    left = f"{format_count(found.cancelled_by_plan)} cancelled by plan" if found.cancelled_by_plan else "none cancelled"
    return [
        ("Requests", format_count(found.requests), left),
        (
            "Ended well",
            format_count(found.ok),
            f"{format_percent(found.ok / asked) if asked else '-'} of those not cancelled",
        ),
        ("Errors", format_count(errors), format_percent(errors / asked) if asked else "-"),
        ("Rate", f"{format_number(found.achieved_rps)}/s", rate),
        ("Goodput", f"{format_number(found.goodput_rps)}/s", f"{format_count(found.good)} within every limit"),
        (
            "Output tokens",
            f"{format_number(found.output_tokens_per_s)}/s",
            f"{format_count(found.output_tokens)} in all",
        ),
    ]


def latencies(found: Summary) -> list[Row]:
    """One row for each latency: name, count, mean, p50, p90, p95, p99, p99.9, max; in milliseconds. A percentile of too
    few values has a star."""
    rows: list[tuple[str, LatencyStats]] = [
        ("TTFT", found.ttft_ms),
        ("TTFT from sending", found.ttft_from_sent_ms),
        ("ITL", found.itl_ms),
        ("longest gap of a stream", found.max_stall_ms),
        ("TPOT", found.tpot_ms),
        ("E2E", found.e2e_ms),
        ("E2E from sending", found.e2e_from_sent_ms),
    ]
    return [(name, *_latency_cells(each)) for name, each in rows]


def has_few_samples(rows: Iterable[Row]) -> bool:
    """Whether any of these percentiles has a star."""
    return any(cell.endswith("*") for row in rows for cell in row)


def checks(found: Iterable[Check]) -> list[Row]:
    """One row for each limit: name, met or missed, value, limit, 95 % interval."""
    rows: list[Row] = []
    for check in found:
        latency = check.name.endswith("_ms")
        say = format_ms if latency else format_percent
        interval = f"{_interval_end(check.low)} to {_interval_end(check.high)}" if latency else "-"
        limit = f"{'at least' if check.name == 'goodput' else 'at most'} {say(check.limit)}"
        rows.append((check.name, "met" if check.met else "missed", say(check.value), limit, interval))
    return rows


def errors(found: Summary) -> list[Row]:
    """One row for each kind, the most frequent first: kind, count, share of all requests, meaning."""
    kinds = sorted(found.errors_by_kind.items(), key=lambda pair: (-pair[1], pair[0]))
    known = {str(kind): text for kind, text in _MEANINGS.items()}
    return [
        (
            kind,
            format_count(times),
            format_percent(times / found.requests) if found.requests else "-",
            known.get(kind, ""),
        )
        for kind, times in kinds
    ]


def groups(found: Iterable[Group]) -> list[Row]:
    return [
        (
            group.workload, group.tenant, *map(format_count, (s.requests, s.ok, sum(s.errors_by_kind.values()))),
            *map(format_number, (s.ttft_ms.p50, s.ttft_ms.p99, s.itl_ms.p50, s.itl_ms.p99, s.e2e_ms.p50, s.e2e_ms.p99)),
            format_number(s.output_tokens_per_s),
        )
        for group in found
        for s in (group.summary,)
    ]  # fmt: skip


def fairness(found: Iterable[Group]) -> Fairness | None:
    """Between tenants, all workloads of each together; None if there are fewer than two."""
    parts: dict[str, list[Summary]] = {}
    for group in found:
        if group.summary.requests:
            parts.setdefault(group.tenant, []).append(group.summary)
    if len(parts) < 2:
        return None
    served = [
        _quotient(sum(s.ok for s in each), sum(s.requests - s.cancelled_by_plan for s in each))
        for each in parts.values()
    ]
    soon = [
        _quotient(sum((s.ttft_ms.mean or 0) * s.ttft_ms.count for s in each), sum(s.ttft_ms.count for s in each))
        for each in parts.values()
    ]
    return Fairness(_jain_index(served), _jain_index(soon))


def generator(result: Result) -> list[Row]:
    """Name, value, meaning."""
    found = result.generator
    late, lag = found.lateness_ms, found.loop_lag_ms
    return [
        ("workers", format_count(found.workers), "processes that generated the load"),
        ("lateness p50 / p99 / max", _p50_p99_max(late), "from the intended start to the first byte sent"),
        ("loop lag p50 / p99 / max", _p50_p99_max(lag), "how late the generator's own timers woke"),
        ("CPU", format_percent(found.cpu_share_max), "of one core, the busiest five seconds of the busiest worker"),
        ("dropped arrivals", format_count(found.dropped_arrivals), "due and never sent"),
        ("events", format_count(found.events), "server-sent events received"),
        (
            "CPU per event",
            "-" if found.cpu_us_per_event is None else f"{format_number(found.cpu_us_per_event, 3)} µs",
            "",
        ),
    ]


def server(result: Result) -> list[Row]:
    """Name, value, meaning."""
    found = result.server
    apart = ""
    if found.generated_tokens and found.client_tokens is not None:
        share = (found.generated_tokens / found.client_tokens - 1) * 100 if found.client_tokens else None
        apart = f"{format_signed(share)} % "
    return [
        ("tokens, by the server", format_count(found.generated_tokens), "its counter over the whole run, with warm-up"),
        ("tokens, by the client", format_count(found.client_tokens), f"{apart}difference" if apart else ""),
        ("TTFT apart", "-" if found.ttft_gap_ms is None else f"{format_signed(found.ttft_gap_ms)} ms",
         "client's mean from sending, minus the server's own mean: network, and waiting before the server's clock"),
        ("gateway overhead", format_ms(found.gateway_overhead_ms), "mean time from arrival to engine, without queue"),
        *((name, format_number(value), "more than before the run") for name, value in sorted(found.left_over.items())),
    ]  # fmt: skip


def integrity(result: Result) -> list[Row]:
    """Name, value, meaning."""
    found = result.integrity
    freed = {None: "not asked", True: "yes", False: "no"}[found.freed_after_cancels]
    return [
        (
            "streams checked",
            format_count(found.checked_streams),
            "for [DONE], finish reason, usage, order and identity",
        ),
        ("tokens verified", format_count(found.verified_tokens), "one by one, against the synthetic engine's tokens"),
        ("violations", format_count(sum(found.violations.values())), ", ".join(sorted(found.violations))),
        ("freed after cancels", freed, "whether the server's gauges returned to their values before the run"),
    ]


def _latency_cells(found: LatencyStats) -> Row:
    percentiles = ((found.p50, 0.5), (found.p90, 0.9), (found.p95, 0.95), (found.p99, 0.99), (found.p999, 0.999))
    return (
        format_count(found.count),
        format_number(found.mean),
        *(format_number(value) + ("*" if 0 < found.count < samples_needed(q) else "") for value, q in percentiles),
        format_number(found.max),
    )


def _interval_end(value: float | None) -> str:
    return "unknown" if value is None else format_ms(value)


def _p50_p99_max(found: LatencyStats) -> str:
    return (
        f"{format_number(found.p50, 3)} / {format_number(found.p99, 3)} / {format_number(found.max, 3)} ms"
        if found.count
        else "-"
    )


def _quotient(some: float, of: float) -> float:
    return some / of if of else 0.0


def _jain_index(values: list[float]) -> float | None:
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None
