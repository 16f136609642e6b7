"""The verdict on a run. Pure.

Incomplete or incorrect streams take precedence over everything, since no latency makes up for them; then a generator
that did not send as planned, since its numbers prove nothing; then the limits. Every reason is a sentence with the
numbers in it.

Latencies are those of requests that got so far: a failed request has none. It counts in the error rate and against the
goodput, which is why the error rate has a limit of zero unless the scenario sets another.
"""

from __future__ import annotations

from collections.abc import Iterator

from loadtest.formatting import format_ms, format_number, format_percent
from loadtest.measure.histogram import Histogram
from loadtest.measure.quantile_ci import quantile_interval, samples_needed
from loadtest.measure.result import Check, Generator, Integrity, LatencyStats, Outcome, Server, Summary, Verdict
from loadtest.scenario.slo import Limit, Slo


def judge(summary: Summary, generator: Generator, integrity: Integrity, server: Server, slo: Slo) -> Verdict:
    """The outcome and its reasons, the decisive ones first."""
    violations = list(_integrity_reasons(integrity))
    invalid = list(generator.invalid)
    if not summary.requests:
        invalid.append("no request was due in the measured stage, so there is nothing to judge")
    checks, missed, met = _check_limits(summary, slo)

    if violations:
        outcome = Outcome.INTEGRITY
    elif invalid:
        outcome = Outcome.INVALID
    elif missed:
        outcome = Outcome.MISSED
    else:
        outcome = Outcome.PASS
    reasons = [*violations, *(f"the generator's numbers prove nothing: {why}" for why in invalid), *missed, *met]
    reasons.extend(_left_over_reasons(server))
    return Verdict(outcome=outcome, exit_code=outcome.exit_code, reasons=reasons, checks=checks)


def _integrity_reasons(integrity: Integrity) -> Iterator[str]:
    for kind, count in sorted(integrity.violations.items(), key=lambda pair: (-pair[1], pair[0])):
        yield f"{count:,} of {integrity.checked_streams:,} streams were incomplete or incorrect: {kind}"
    if integrity.freed_after_cancels is False:
        yield "after cancelled requests the server's gauges did not return to their values before the run"


def _check_limits(summary: Summary, slo: Slo) -> tuple[list[Check], list[str], list[str]]:
    """All checks, the sentences of those missed, and of those met."""
    checked = [_check_latency(summary, limit) for limit in slo.limits]
    checked.append(_check_error_rate(summary, slo.error_rate_max))
    if slo.goodput_min is not None:
        checked.append(_check_goodput(summary, slo.goodput_min))
    return (
        [check for check, _ in checked],
        [sentence for check, sentence in checked if not check.met],
        [sentence for check, sentence in checked if check.met],
    )


def _check_latency(summary: Summary, limit: Limit) -> tuple[Check, str]:
    measured: LatencyStats = getattr(summary, limit.metric)
    value: float | None = getattr(measured, limit.quantile)
    if value is None:
        check = Check(name=limit.name, limit=limit.limit, value=None, met=False)
        return check, f"{limit.name} cannot be judged: nothing was measured (limit {format_ms(limit.limit)})"

    q = float(f"0.{limit.quantile.removeprefix('p')}")
    low, high = (
        None if end is None else round(end / 1000, 3)
        for end in quantile_interval(Histogram.from_dict(measured.histogram), q)
    )
    met = value <= limit.limit
    check = Check(name=limit.name, limit=limit.limit, value=value, met=met, low=low, high=high)
    # A narrow miss must not read as "500 ms, limit 500 ms".
    shown = f"{value:,.3f} ms" if not met and format_ms(value) == format_ms(limit.limit) else format_ms(value)
    sentence = f"{limit.name} is {shown}, limit {format_ms(limit.limit)}: {'met' if met else 'missed'}"
    below = "no lower end" if low is None else format_ms(low)
    if high is None:
        return check, (
            f"{sentence}; but this comes from {measured.count:,} of the {samples_needed(q):,} samples that "
            f"{limit.quantile} needs: its 95 % interval is from {below} to no upper end"
        )
    sentence = f"{sentence} (95 % interval {below} to {format_ms(high)}, {measured.count:,} samples)"
    if met and high > limit.limit:
        sentence += "; the limit is inside the interval, so another run may miss it"
    return check, sentence


def _check_error_rate(summary: Summary, limit: float) -> tuple[Check, str]:
    due = summary.requests - summary.cancelled_by_plan
    errors = sum(summary.errors_by_kind.values())
    rate = errors / due if due else 0.0
    check = Check(name="error_rate", limit=limit, value=round(rate, 6), met=rate <= limit)
    kinds = ", ".join(
        f"{kind} {count:,}" for kind, count in sorted(summary.errors_by_kind.items(), key=lambda pair: -pair[1])
    )
    sentence = f"{errors:,} of {due:,} requests failed ({format_percent(rate)}), limit {format_percent(limit)}"
    return check, f"{sentence}: {'met' if check.met else 'missed'}{'; ' if kinds else ''}{kinds}"


def _check_goodput(summary: Summary, limit: float) -> tuple[Check, str]:
    due = summary.requests - summary.cancelled_by_plan
    part = summary.good / due if due else 0.0
    check = Check(name="goodput", limit=limit, value=round(part, 6), met=part >= limit)
    return check, (
        f"{summary.good:,} of {due:,} requests were good ({format_percent(part)}, "
        f"{format_number(summary.goodput_rps)} a second), at least {format_percent(limit)} required: "
        f"{'met' if check.met else 'missed'}"
    )


def _left_over_reasons(server: Server) -> Iterator[str]:
    # Other clients may be using the server, so this alone decides nothing.
    for name, value in sorted(server.left_over.items()):
        yield f"when the run was over, {name} was still {format_number(value)}, more than before it"
