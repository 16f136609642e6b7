"""The rows of a run's tables, formatted, for the page and for the summary alike. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.formatting import format_count, format_ms, format_number, format_percent, format_signed
from loadtest.measure.quantile_ci import samples_needed
from loadtest.measure.result import Check, ErrorKind, Group, LatencyStats, Outcome, Result, Summary

__all__ = [
    "HEADLINES", "Fairness", "cards", "checks", "errors", "fairness", "generator", "groups", "has_few_samples",
    "integrity", "latencies", "server",
]  # fmt: skip

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


def cards(summary: Summary) -> list[tuple[str, str, str]]:
    """The numbers at the top: name, value, and the number to compare it with."""
    errors = sum(summary.errors_by_kind.values())
    due = summary.requests - summary.cancelled_by_plan
    rate = "closed loop" if summary.asked_rps is None else f"{format_number(summary.asked_rps)}/s due"
    cancelled = f"{format_count(summary.cancelled_by_plan)} cancelled by plan"
    succeeded = f"{format_percent(summary.ok / due) if due else '-'} of those not cancelled"
    return [
        ("Requests", format_count(summary.requests), cancelled),
        ("Successful", format_count(summary.ok), succeeded),
        ("Errors", format_count(errors), format_percent(errors / due) if due else "-"),
        ("Rate", f"{format_number(summary.achieved_rps)}/s", rate),
        ("Goodput", f"{format_number(summary.goodput_rps)}/s", f"{format_count(summary.good)} within every limit"),
        (
            "Output tokens",
            f"{format_number(summary.output_tokens_per_s)}/s",
            f"{format_count(summary.output_tokens)} in all",
        ),
    ]


def latencies(summary: Summary) -> list[Row]:
    """One row for each latency: name, count, mean, p50, p90, p95, p99, p99.9, max; in milliseconds. A percentile of too
    few values has a star."""
    rows: list[tuple[str, LatencyStats]] = [
        ("TTFT", summary.ttft_ms),
        ("TTFT from sending", summary.ttft_from_sent_ms),
        ("ITL", summary.itl_ms),
        ("longest gap of a stream", summary.max_stall_ms),
        ("TPOT", summary.tpot_ms),
        ("E2E", summary.e2e_ms),
        ("E2E from sending", summary.e2e_from_sent_ms),
    ]
    return [(name, *_latency_cells(stats)) for name, stats in rows]


def has_few_samples(rows: Iterable[Row]) -> bool:
    """Whether any of these percentiles has a star."""
    return any(cell.endswith("*") for row in rows for cell in row)


def checks(judged: Iterable[Check]) -> list[Row]:
    """One row for each limit: name, met or missed, value, limit, 95 % interval."""
    rows: list[Row] = []
    for check in judged:
        latency = check.name.endswith("_ms")
        format_value = format_ms if latency else format_percent
        interval = f"{_interval_end(check.low)} to {_interval_end(check.high)}" if latency else "-"
        limit = f"{'at least' if check.name == 'goodput' else 'at most'} {format_value(check.limit)}"
        rows.append((check.name, "met" if check.met else "missed", format_value(check.value), limit, interval))
    return rows


def errors(summary: Summary) -> list[Row]:
    """One row for each kind, the most frequent first: kind, count, share of all requests, meaning."""
    kinds = sorted(summary.errors_by_kind.items(), key=lambda pair: (-pair[1], pair[0]))
    meanings = {str(kind): text for kind, text in _MEANINGS.items()}
    whole = max(summary.requests, 1)
    return [(kind, format_count(times), format_percent(times / whole), meanings.get(kind, "")) for kind, times in kinds]


def groups(groups_: Iterable[Group]) -> list[Row]:
    return [
        (
            group.workload,
            group.tenant,
            *map(format_count, (summary.requests, summary.ok, sum(summary.errors_by_kind.values()))),
            *(
                format_number(q)
                for stats in (summary.ttft_ms, summary.itl_ms, summary.e2e_ms)
                for q in (stats.p50, stats.p99)
            ),
            format_number(summary.output_tokens_per_s),
        )
        for group in groups_
        for summary in (group.summary,)
    ]


def fairness(groups_: Iterable[Group]) -> Fairness | None:
    """Between tenants, all workloads of each together; None if there are fewer than two."""
    by_tenant: dict[str, list[Summary]] = {}
    for group in groups_:
        if group.summary.requests:
            by_tenant.setdefault(group.tenant, []).append(group.summary)
    if len(by_tenant) < 2:
        return None
    served = [
        _quotient(sum(s.ok for s in summaries), sum(s.requests - s.cancelled_by_plan for s in summaries))
        for summaries in by_tenant.values()
    ]
    soon = [
        _quotient(
            sum((s.ttft_ms.mean or 0) * s.ttft_ms.count for s in summaries), sum(s.ttft_ms.count for s in summaries)
        )
        for summaries in by_tenant.values()
    ]
    return Fairness(_jain_index(served), _jain_index(soon))


def generator(result: Result) -> list[Row]:
    """Name, value, meaning."""
    measured = result.generator
    late, lag = measured.lateness_ms, measured.loop_lag_ms
    return [
        ("workers", format_count(measured.workers), "processes that generated the load"),
        ("lateness p50 / p99 / max", _p50_p99_max(late), "from the intended start to the first byte sent"),
        ("loop lag p50 / p99 / max", _p50_p99_max(lag), "how late the generator's own timers woke"),
        ("CPU", format_percent(measured.cpu_share_max), "of one core, the busiest five seconds of the busiest worker"),
        ("dropped arrivals", format_count(measured.dropped_arrivals), "due and never sent"),
        ("events", format_count(measured.events), "server-sent events received"),
        (
            "CPU per event",
            "-" if measured.cpu_us_per_event is None else f"{format_number(measured.cpu_us_per_event, 3)} µs",
            "",
        ),
    ]


def server(result: Result) -> list[Row]:
    """Name, value, meaning."""
    metrics = result.server
    difference = ""
    if metrics.generated_tokens and metrics.client_tokens is not None:
        share = (metrics.generated_tokens / metrics.client_tokens - 1) * 100 if metrics.client_tokens else None
        difference = f"{format_signed(share)} % "
    return [
        ("tokens, by the server", format_count(metrics.generated_tokens), "its counter over the run, with warm-up"),
        ("tokens, by the client", format_count(metrics.client_tokens), f"{difference}difference" if difference else ""),
        ("TTFT difference", "-" if metrics.ttft_gap_ms is None else f"{format_signed(metrics.ttft_gap_ms)} ms",
         "client's mean from sending, minus the server's own mean: network, and waiting before the server's clock"),
        ("gateway overhead", format_ms(metrics.gateway_overhead_ms), "mean time from arrival to engine, without queue"),
        *((name, format_number(value), "above the baseline") for name, value in sorted(metrics.left_over.items())),
    ]  # fmt: skip


def integrity(result: Result) -> list[Row]:
    """Name, value, meaning."""
    checked = result.integrity
    freed = {None: "no cancels", True: "yes", False: "no"}[checked.freed_after_cancels]
    return [
        (
            "streams checked",
            format_count(checked.checked_streams),
            "for [DONE], finish reason, usage, order and identity",
        ),
        ("tokens verified", format_count(checked.verified_tokens), "one by one, against the synthetic engine's tokens"),
        ("violations", format_count(sum(checked.violations.values())), ", ".join(sorted(checked.violations))),
        ("freed after cancels", freed, "whether the server's gauges returned to their values before the run"),
    ]


def _latency_cells(stats: LatencyStats) -> Row:
    percentiles = ((stats.p50, 0.5), (stats.p90, 0.9), (stats.p95, 0.95), (stats.p99, 0.99), (stats.p999, 0.999))
    return (
        format_count(stats.count),
        format_number(stats.mean),
        *(format_number(value) + ("*" if 0 < stats.count < samples_needed(q) else "") for value, q in percentiles),
        format_number(stats.max),
    )


def _interval_end(value: float | None) -> str:
    return "unknown" if value is None else format_ms(value)


def _p50_p99_max(stats: LatencyStats) -> str:
    return (
        f"{format_number(stats.p50, 3)} / {format_number(stats.p99, 3)} / {format_number(stats.max, 3)} ms"
        if stats.count
        else "-"
    )


def _quotient(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _jain_index(values: list[float]) -> float | None:
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None
