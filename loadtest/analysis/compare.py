"""Whether a run is worse than another one, and with which confidence. Pure.

For each number the ratio of the second run to the first, with a 95 % interval (see `bootstrap`). Only an interval that
lies wholly on the bad side, by more than the tolerance, is a regression: a difference that chance explains is none, nor
is one too small to matter. Error rates are subtracted instead, since most are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from loadtest.analysis.bootstrap import BLOCKS_MIN, FloatArray, Resamples, bootstrap_interval
from loadtest.analysis.comparison import Comparison, Row, Trend
from loadtest.measure.quantile_ci import samples_needed
from loadtest.measure.result import Outcome, Result, TimelineSecond, merged_histogram

# Half of the change that would deserve an investigation; load tests on the same machine differ by a few percent anyway.
TOLERANCE = 0.05
_SEEDS = (20_261_125, 20_261_126)
_METRICS = (("TTFT", "ttft"), ("ITL", "itl"), ("TPOT", "tpot"), ("E2E", "e2e"))
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))

Pair = tuple[float | None, float | None]


def compare(a: Result, b: Result, tolerance: float = TOLERANCE) -> Comparison:
    """Run b against run a. `tolerance`: the largest relative change that does not matter."""
    # Resampled independently: the seconds of two runs are not pairs, even with the same seed.
    draws = Resamples.from_timeline(a.timeline, _SEEDS[0]), Resamples.from_timeline(b.timeline, _SEEDS[1])
    rows = [*_latencies(a, b, draws, tolerance), _tokens(a, b, draws, tolerance), _errors(a, b, draws, tolerance)]
    return Comparison(a, b, rows, list(_warnings(a, b)), tolerance)


def _latencies(a: Result, b: Result, draws: tuple[Resamples, Resamples], tolerance: float) -> Iterator[Row]:
    shares = [q for _, q in _QUANTILES]
    for name, metric in _METRICS:
        before, after = (merged_histogram(_measured_seconds(run), metric) for run in (a, b))
        smallest_count = min(before.count, after.count)
        resampled = zip(draws[0].quantiles(metric, shares), draws[1].quantiles(metric, shares), strict=True)
        for (label, q), (before_drawn, after_drawn) in zip(_QUANTILES, resampled, strict=True):
            values: Pair = (before.quantile_ms(q), after.quantile_ms(q))
            if smallest_count < samples_needed(q):
                why = f"from {smallest_count} values, {samples_needed(q)} are needed"
                yield Row(f"{name} {label}", "ms", *values, Trend.UNKNOWN, why=why)
            else:
                yield _ratio(f"{name} {label}", "ms", values, after_drawn / before_drawn, draws, tolerance)


def _tokens(a: Result, b: Result, draws: tuple[Resamples, Resamples], tolerance: float) -> Row:
    before, after = ([float(second.output_tokens) for second in _measured_seconds(run)] for run in (a, b))
    values: Pair = (_mean(before), _mean(after))
    resampled = draws[1].per_second(after) / draws[0].per_second(before) if all(values) else None
    return _ratio("output tokens", "/s", values, resampled, draws, tolerance, more_is_better=True)


def _ratio(
    name: str, unit: Literal["ms", "/s"], values: Pair, resampled: FloatArray | None,
    draws: tuple[Resamples, Resamples], tolerance: float, *, more_is_better: bool = False,
) -> Row:  # fmt: skip
    before, after = values
    if resampled is None or not before or after is None:
        return Row(name, unit, *values, Trend.UNKNOWN, why="nothing to compare")
    ends = bootstrap_interval(resampled, _blocks(draws))
    if ends is None:
        return Row(name, unit, *values, Trend.UNKNOWN, after / before, why=_too_few_reason(draws))
    low, high = ends
    above, below = low > 1 + tolerance, high < 1 - tolerance
    if above or below:
        trend = Trend.IMPROVED if above == more_is_better else Trend.REGRESSED
    else:
        trend = Trend.SAME if 1 - tolerance <= low and high <= 1 + tolerance else Trend.UNCLEAR
    return Row(
        name, unit, *values, trend, after / before, low, high, _tendency(trend, low > 1, high < 1, more_is_better)
    )


def _errors(a: Result, b: Result, draws: tuple[Resamples, Resamples], tolerance: float) -> Row:
    rates: list[float | None] = []
    resampled: list[FloatArray] = []
    for run, resamples in zip((a, b), draws, strict=True):
        failed = [float(sum(second.errors.values())) for second in _measured_seconds(run)]
        ended = [second.ok + count for second, count in zip(_measured_seconds(run), failed, strict=True)]
        rates.append(sum(failed) / sum(ended) if sum(ended) else None)
        resampled.append(resamples.share(failed, ended))
    before, after = rates
    if before is None or after is None:
        return Row("error rate", "%", before, after, Trend.UNKNOWN, why="nothing to compare")
    ends = bootstrap_interval(resampled[1] - resampled[0], _blocks(draws))
    if ends is None:
        return Row("error rate", "%", before, after, Trend.UNKNOWN, after - before, why=_too_few_reason(draws))
    low, high = ends
    tolerated = tolerance * before
    if low > tolerated:
        trend = Trend.REGRESSED
    elif high < -tolerated:
        trend = Trend.IMPROVED
    else:
        trend = Trend.SAME if -tolerated <= low and high <= tolerated else Trend.UNCLEAR
    why = _tendency(trend, low > 0, high < 0, more_is_better=False)
    return Row("error rate", "%", before, after, trend, after - before, low, high, why)


def _tendency(trend: Trend, above: bool, below: bool, more_is_better: bool) -> str:
    """The side on which an unclear change mostly lies."""
    if trend != Trend.UNCLEAR or not (above or below):
        return ""
    return "better, perhaps only slightly" if above == more_is_better else "worse, perhaps only slightly"


def _warnings(a: Result, b: Result) -> Iterator[str]:
    """Differences that make the two runs hard to compare."""
    for name, run in (("a", a), ("b", b)):
        if run.verdict.outcome == Outcome.INVALID:
            yield f"the generator of run {name} did not keep up, so its numbers prove nothing"
        if run.verdict.outcome == Outcome.INTEGRITY:
            yield f"streams of run {name} were incomplete or incorrect"
    if a.run.scenario_yaml != b.run.scenario_yaml:
        yield "the scenarios differ, so more than the server may have changed"
    for what, before, after in (
        ("seeds", a.run.seed, b.run.seed),
        ("machines", a.run.machine, b.run.machine),
        ("models", a.run.model, b.run.model),
        ("due rates", a.summary.asked_rps, b.summary.asked_rps),
    ):
        if before != after:
            yield f"the {what} differ: {before} and {after}"
    for what in sorted({*a.run.versions, *b.run.versions}):
        before, after = a.run.versions.get(what, "none"), b.run.versions.get(what, "none")
        if before != after:
            yield f"the versions of {what} differ: {before} and {after}"


def _measured_seconds(run: Result) -> list[TimelineSecond]:
    return [second for second in run.timeline if second.stage == "measure"]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _blocks(draws: tuple[Resamples, Resamples]) -> float:
    return min(draw.blocks for draw in draws)


def _too_few_reason(draws: tuple[Resamples, Resamples]) -> str:
    if _blocks(draws) < BLOCKS_MIN:
        return f"the shorter run has fewer than {BLOCKS_MIN} independent blocks of seconds"
    return "too few events in most blocks of seconds"
