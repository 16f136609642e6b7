"""The charts of a run. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from loadtest.formatting import format_ms, format_number
from loadtest.measure.histogram import Histogram
from loadtest.measure.result import Check, LatencyStats, Result, Server, TimelineSecond, merged_histogram
from loadtest.report.chart import Band, Chart, Line, ReferenceLine
from loadtest.report.scale import Linear, PercentileTail, Time, latency_axis

# More points than pixels add nothing.
_POINTS = 240
# Kinds of errors drawn separately; a seventh colour could not be distinguished from the others.
_KINDS = 5
_QUANTILES = (("p50", 0.5), ("p99", 0.99))
_NAMES = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E"}
_CHECK = re.compile(r"(ttft|itl|tpot|e2e)_(p\d+)_ms")
# Resolution of a percentile curve: steps for each nine.
_PER_NINE = 24


@dataclass(frozen=True, slots=True)
class Span:
    """Some seconds of the run, together one point of a chart."""

    slices: Sequence[TimelineSecond]

    @property
    def t_s(self) -> float:
        return self.slices[0].t_s + (len(self.slices) - 1) / 2

    def rate(self, value_of: Callable[[TimelineSecond], int]) -> float:
        return sum(map(value_of, self.slices)) / len(self.slices)


def spans(timeline: Sequence[TimelineSecond]) -> list[Span]:
    """The run in at most `_POINTS` spans of equal length."""
    size = max(1, ceil(len(timeline) / _POINTS))
    return [Span(timeline[at : at + size]) for at in range(0, len(timeline), size)]


def timeline_charts(result: Result) -> list[Chart]:
    """Rates, requests in flight, tokens, latencies and errors over time."""
    run_spans = spans(result.timeline)
    x = Time.over(result.timeline[-1].t_s + 1 if result.timeline else 1)
    every = f"each point is {len(run_spans[0].slices)} s" if run_spans and len(run_spans[0].slices) > 1 else ""
    draw = _TimelineCharts(result, run_spans, x, every)
    due = [] if result.summary.asked_rps is None else [("due", _rate_points(run_spans, lambda s: s.due))]
    charts = [
        draw.chart(
            "Requests", "requests per second, by when they were due, sent and ended",
            "requests/s",
            [*due, ("sent", _rate_points(run_spans, lambda s: s.sent)),
             ("successful", _rate_points(run_spans, lambda s: s.ok))],
        ),
        draw.chart(
            "In flight", "requests that had been sent and not ended", "requests",
            [("in flight", _rate_points(run_spans, lambda s: s.in_flight))],
        ),
        draw.chart(
            "Output tokens", "tokens received per second", "tokens/s",
            [("tokens/s", _rate_points(run_spans, lambda s: s.output_tokens))],
        ),
        draw.latency("ttft", "Time to first token", "by the second of the first token, from the intended start"),
        draw.latency("itl", "Between tokens (ITL)", "gaps between events with content"),
        draw.latency("e2e", "Whole requests (E2E)", "by the second of the end, from the intended start"),
    ]  # fmt: skip
    if errors := draw.errors():
        charts.append(errors)
    return charts


def percentile_charts(result: Result) -> list[Chart]:
    """Percentile curves, the tail spread out, with the limits of the SLO."""
    summary = result.summary
    metrics: list[tuple[str, str, list[tuple[str, LatencyStats]]]] = [
        ("ttft", "Time to first token", [("intended", summary.ttft_ms), ("sent", summary.ttft_from_sent_ms)]),
        ("itl", "Between tokens (ITL)", [("each gap", summary.itl_ms), ("longest of a stream", summary.max_stall_ms)]),
        ("tpot", "Per output token (TPOT)", [("each stream", summary.tpot_ms)]),
        ("e2e", "Whole requests (E2E)", [("intended", summary.e2e_ms), ("sent", summary.e2e_from_sent_ms)]),
    ]
    return [_percentile_chart(metric, title, series, result.verdict.checks) for metric, title, series in metrics]


_SERVER = (
    ("Requests in the server", "requests", 1.0, (
        ("vllm:num_requests_running", "vLLM running"), ("vllm:num_requests_waiting", "vLLM waiting"),
        ("sluice_streams_active", "Sluice active"), ("sluice_requests_waiting", "Sluice waiting"),
    )),
    ("KV cache in use", "% of blocks", 100.0, (("vllm:kv_cache_usage_perc", "fullest engine"),)),
    ("Tokens generated", "tokens/s", 1.0, (("vllm:generation_tokens_total", "vLLM"),)),
    ("Preemptions", "per second", 1.0, (("vllm:num_preemptions_total", "vLLM"),)),
    ("Event loop of the gateway", "lag (ms)", 1000.0, (("sluice_loop_lag_seconds", "mean lag"),)),
    ("CPU of the server", "cores", 1.0, (("process_cpu_seconds_total", "gateway process"),)),
    ("Memory of the server", "MiB", 1 / 2**20, (("process_resident_memory_bytes", "gateway process"),)),
)  # fmt: skip


def server_charts(metrics: Server, length_s: float, bands: Sequence[Band]) -> list[Chart]:
    """The server's own metrics, a chart for each kind that it has."""
    x = Time.over(length_s)
    charts = []
    for title, unit, factor, names in _SERVER:
        series = [
            (label, _thin_out(metrics.series[name], factor, length_s))
            for name, label in names
            if metrics.series.get(name)
        ]
        charts.append(_time_chart(title, f"{title}, by the server's metrics, in {unit}", unit, series, x, bands))
    rejected = [(name.partition('reason="')[2].rstrip('"}') or "any", _thin_out(points, 1.0, length_s))
               for name, points in metrics.series.items() if name.startswith("sluice_rejections_total")]  # fmt: skip
    charts.append(
        _time_chart("Rejections", "requests rejected by the gateway, by reason", "per second", rejected[:6], x, bands)
    )
    return [chart for chart in charts if not chart.is_empty]


def unmeasured_bands(result: Result) -> list[Band]:
    """The parts of the timeline that are not measured."""
    bands = []
    for stage, label in (("warmup", "warm-up, not measured"), ("drain", "drain, not measured")):
        times = [second.t_s for second in result.timeline if second.stage == stage]
        if times:
            bands.append(Band(min(times), max(times) + 1, label))
    return bands


def slo_limits(checks: Iterable[Check], metric: str) -> list[tuple[str, float]]:
    """The SLO's limits on a metric: quantile and milliseconds."""
    matched = ((_CHECK.fullmatch(check.name), check.limit) for check in checks)
    return [(match[2], limit) for match, limit in matched if match and match[1] == metric]


class _TimelineCharts:
    """Shares data between the charts of one timeline."""

    def __init__(self, result: Result, run_spans: Sequence[Span], x: Time, every: str) -> None:
        self._result = result
        self._spans = run_spans
        self._x = x
        self._every = every
        self._bands = unmeasured_bands(result)

    def chart(
        self, title: str, text: str, unit: str, series: Sequence[tuple[str, list[tuple[float, float | None]]]]
    ) -> Chart:
        return _time_chart(title, text, unit, series, self._x, self._bands, note=self._every)

    def latency(self, metric: str, title: str, text: str) -> Chart:
        histograms = [(span.t_s, merged_histogram(span.slices, metric)) for span in self._spans]
        series = [
            Line(name, [(t_s, counted.quantile_ms(q)) for t_s, counted in histograms], colour)
            for colour, (name, q) in enumerate(_QUANTILES)
        ]
        values = [value for line in series for _, value in line.points if value is not None]
        rules, drawn = _limit_lines(slo_limits(self._result.verdict.checks, metric), values)
        note = f"p99 is the largest where there are fewer than 100 values{'; ' if self._every else ''}{self._every}"
        return Chart(
            title, f"{_NAMES[metric]}, median and 99th percentile over time, {text}", self._x,
            latency_axis(f"{_NAMES[metric]} (ms)", [*values, *drawn]), series, " ms", self._bands, rules,
            note=f"{text}; {note}", x_labels=[_format_run_time(span.t_s) for span in self._spans],
        )  # fmt: skip

    def errors(self) -> Chart | None:
        total: dict[str, int] = {}
        for second in self._result.timeline:
            for kind, count in second.errors.items():
                total[kind] = total.get(kind, 0) + count
        if not total:
            return None
        kinds = sorted(total, key=lambda kind: (-total[kind], kind))
        shown, others = (kinds, []) if len(kinds) <= _KINDS + 1 else (kinds[:_KINDS], kinds[_KINDS:])
        groups = [(kind, {kind}) for kind in shown]
        if others:
            groups.append((f"{len(others)} other kinds", set(others)))
        lines = [
            Line(name, [(span.t_s, _error_rate(span, members) or None) for span in self._spans], colour, "bars")
            for colour, (name, members) in enumerate(groups)
        ]
        tops = [sum(value or 0 for _, value in column) for column in zip(*(line.points for line in lines), strict=True)]
        return Chart(
            "Errors", "failed requests by kind, stacked", self._x, Linear.over("errors/s", tops), lines, "/s",
            self._bands, note=self._every, x_labels=[_format_run_time(span.t_s) for span in self._spans],
        )  # fmt: skip


def _time_chart(
    title: str, text: str, unit: str, series: Sequence[tuple[str, list[tuple[float, float | None]]]], x: Time,
    shaded: Sequence[Band], note: str = "",
) -> Chart:  # fmt: skip
    lines = [Line(name, points, colour) for colour, (name, points) in enumerate(series)]
    values = [value for line in lines for _, value in line.points if value is not None]
    longest: Sequence[tuple[float, float | None]] = max((line.points for line in lines), key=len, default=())
    return Chart(
        title, text, x, Linear.over(unit, values), lines, f" {unit}", shaded, note=note,
        x_labels=[_format_run_time(t_s) for t_s, _ in longest],
    )  # fmt: skip


def _percentile_chart(
    metric: str, title: str, series: Sequence[tuple[str, LatencyStats]], checks: Sequence[Check]
) -> Chart:
    counts = [stats.count for _, stats in series]
    x = PercentileTail.over("percentile", max(counts))
    lines = [
        Line(name, _percentile_points(stats, x), colour) for colour, (name, stats) in enumerate(series) if stats.count
    ]
    values = [value for line in lines for _, value in line.points if value is not None]
    rules, drawn = _limit_lines(slo_limits(checks, metric), values)
    longest = max((line.points for line in lines), key=len, default=())
    return Chart(
        title, f"{_NAMES[metric]} at each percentile; every further nine has the same width", x,
        latency_axis(f"{_NAMES[metric]} (ms)", [*values, *drawn]), lines, " ms", (), rules,
        note=f"number of values: {max(counts):,}", x_labels=[f"p{format_number(q * 100, 5)}" for q, _ in longest],
    )  # fmt: skip


def _percentile_points(stats: LatencyStats, x: PercentileTail) -> list[tuple[float, float | None]]:
    """The curve, as far as there are values for it; it ends at the largest."""
    histogram = Histogram.from_dict(stats.histogram)
    last = 1 - 0.5 / histogram.count
    steps = [1 - 10 ** (-i / _PER_NINE) for i in range(int(x.last * _PER_NINE) + 1)]
    shares = sorted({q for q in (*steps, 0.5, 0.9, 0.99, 0.999, 0.9999) if q < last} | {last})
    return [(q, histogram.quantile_ms(q)) for q in shares]


def _limit_lines(
    limits: Sequence[tuple[str, float]], values: Sequence[float]
) -> tuple[list[ReferenceLine], list[float]]:
    """The limits as lines, and those of them near enough to the values to widen the axis for."""
    near = [limit for _, limit in limits if values and limit <= 4 * max(values)]
    return [
        ReferenceLine(limit, f"{quantile} limit {format_ms(limit)}") for quantile, limit in limits if limit in near
    ], near


def _rate_points(
    run_spans: Iterable[Span], value_of: Callable[[TimelineSecond], int]
) -> list[tuple[float, float | None]]:
    return [(span.t_s, span.rate(value_of)) for span in run_spans]


def _error_rate(span: Span, kinds: set[str]) -> float:
    return span.rate(lambda second: sum(count for kind, count in second.errors.items() if kind in kinds))


def _thin_out(points: Sequence[Sequence[float]], factor: float, length_s: float) -> list[tuple[float, float | None]]:
    """At most `_POINTS` points, each the mean of its neighbours; none from before or after the run."""
    inside = [(t_s, value * factor) for t_s, value in points if 0 <= t_s <= length_s]
    size = max(1, ceil(len(inside) / _POINTS))
    groups = [inside[at : at + size] for at in range(0, len(inside), size)]
    return [(group[len(group) // 2][0], sum(value for _, value in group) / len(group)) for group in groups]


def _format_run_time(t_s: float) -> str:
    """A time of the run: 42 s, 1:02:03."""
    if t_s < 180:
        return f"{format_number(t_s)} s"
    minutes, seconds = divmod(int(t_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
