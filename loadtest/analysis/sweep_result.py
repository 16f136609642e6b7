"""The result of a sweep, as text for the terminal, as JSON, and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import Literal

from pydantic import Field

from loadtest.formatting import MISSING, format_ms, format_number, format_percent
from loadtest.measure.result import Check, Outcome, Result, ResultPart, Verdict
from loadtest.report import page
from loadtest.report.chart import Chart, Line, ReferenceLine
from loadtest.report.scale import Linear, latency_axis

# Replicas should run below their limit: the load that arrives while another one starts must fit, too.
HEADROOM = 0.8
_RUNNING = ("vllm:num_requests_running", "sluice_streams_active")
_WAITING = ("vllm:num_requests_waiting", "sluice_requests_waiting")


class Step(ResultPart):
    """One run of a sweep."""

    rate: float = Field(description="requests per second")
    outcome: Outcome
    reason: str = Field(description="the first of the verdict's reasons")
    achieved_rps: float
    goodput_rps: float
    output_tokens_per_s: float
    checks: list[Check]

    @classmethod
    def from_result(cls, rate: float, result: Result, verdict: Verdict) -> Step:
        return cls(
            rate=rate,
            outcome=verdict.outcome,
            reason=verdict.reasons[0] if verdict.reasons else "",
            achieved_rps=result.summary.achieved_rps,
            goodput_rps=result.summary.goodput_rps,
            output_tokens_per_s=result.summary.output_tokens_per_s,
            checks=verdict.checks,
        )

    def sentence(self) -> str:
        """For the progress output."""
        return f"{format_number(self.rate)}/s: {self.outcome}; {self.reason}"


class AutoscalerTargets(ResultPart):
    """Targets for an autoscaler, each per replica."""

    running: int = Field(description="target of running requests: those at the limit, times the headroom")
    running_at_limit: float
    waiting: int = Field(description="more waiting requests than this show that a replica is full")
    source: str = Field(description="where running requests were counted")


class SweepResult(ResultPart):
    schema_: Literal["sluice-load-sweep/1"] = Field("sluice-load-sweep/1", alias="schema")
    low: float
    high: float
    precision: float
    limit: float | None = Field(description="the highest rate that met the SLO; None if none did")
    ended: str
    steps: list[Step]
    notes: list[str]
    autoscaler: AutoscalerTargets | None

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        if self.limit is None:
            return f"No rate met the SLO: {self.ended}"
        return f"The SLO is met up to {format_number(self.limit)} requests per second"

    def autoscaler_advice(self) -> list[str]:
        """Sentences for the configuration of an autoscaler."""
        if self.autoscaler is None:
            return []
        targets = self.autoscaler
        return [
            (
                f"target of running requests per replica: {targets.running} ({targets.source} at the limit: "
                f"{format_number(targets.running_at_limit)}, times {HEADROOM:g})"
            ),
            f"waiting requests per replica that show it is full: more than {targets.waiting}",
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows of a table of the steps, by rate."""
        names = list(dict.fromkeys(check.name for step in self.steps for check in step.checks))
        head = ["rate", "result", "achieved", "good", "tokens/s", *names]
        rows = []
        for step in sorted(self.steps, key=lambda step: step.rate):
            values = {check.name: check for check in step.checks}
            cells = [_value(values[name]) if name in values else MISSING for name in names]
            rates = [f"{format_number(rps)}/s" for rps in (step.achieved_rps, step.goodput_rps)]
            rows.append(
                [
                    f"{format_number(step.rate)}/s",
                    str(step.outcome),
                    *rates,
                    format_number(step.output_tokens_per_s),
                    *cells,
                ]
            )
        return head, rows

    def text(self) -> str:
        """For the terminal."""
        head, rows = self.table()
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
        return "\n".join([*lines, "", self.headline, *self.details()]) + "\n"

    def details(self) -> list[str]:
        """The sentences that belong to the headline."""
        return [*([] if self.limit is None else [self.ended]), *self.notes, *self.autoscaler_advice()]

    def html(self) -> str:
        """As a page with the curves."""
        head, rows = self.table()
        return page.render(
            "sweep.html", {"title": self.headline, "sweep": self, "head": head, "rows": rows, "charts": self.charts()}
        )

    def write(self, out: Path) -> None:
        """Write `sweep.json` and `sweep.html` into a folder."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "sweep.json").write_text(self.model_dump_json(by_alias=True, indent=1), encoding="utf-8")
        (out / "sweep.html").write_text(self.html(), encoding="utf-8")

    def charts(self) -> list[Chart]:
        """Each limited latency against the rate, with its limit and the rate found; then goodput and tokens."""
        limits: dict[str, float] = {
            check.name: check.limit for step in self.steps for check in step.checks if check.name.endswith("_ms")
        }
        curves = [self._latency_chart(name, limit) for name, limit in limits.items()]
        throughput = [(step.rate, step.output_tokens_per_s) for step in self.steps]
        goodput = [(step.rate, step.goodput_rps) for step in self.steps]
        return [
            *curves,
            self._rate_chart("Goodput", "requests/s", goodput),
            self._rate_chart("Output tokens", "tokens/s", throughput),
        ]

    def _latency_chart(self, name: str, limit: float) -> Chart:
        values = [
            (step.rate, check.value, step.outcome == Outcome.PASS)
            for step in self.steps
            for check in step.checks
            if check.name == name and check.value is not None
        ]
        met = [(rate, value) for rate, value, passed in values if passed]
        missed = [(rate, value) for rate, value, passed in values if not passed]
        lines = [
            Line("mean of the runs", _means((rate, value) for rate, value, _ in values), 5),
            Line("SLO met", met, 0, "points"),
            Line("not met", missed, 1, "crosses"),
        ]
        y = latency_axis(f"{name.removesuffix('_ms')} (ms)", [limit, *(value for _, value, _ in values)])
        return Chart(
            f"{name} against the rate", f"{name} in milliseconds at each rate that was tried, with the SLO's limit",
            self._rate_axis(), y, lines, " ms", (),
            [ReferenceLine(limit, f"SLO {format_ms(limit)}"), *self._limit_rule()], "rate",
        )  # fmt: skip

    def _rate_chart(self, title: str, unit: str, values: Sequence[tuple[float, float]]) -> Chart:
        lines = [Line("mean of the runs", _means(values), 5), Line("runs", values, 0, "points")]
        return Chart(
            f"{title} against the rate", f"{title}, {unit}, at each rate that was tried", self._rate_axis(),
            Linear.over(unit, [value for _, value in values]), lines, f" {unit}", (), self._limit_rule(), "rate",
        )  # fmt: skip

    def _rate_axis(self) -> Linear:
        return Linear.over("rate (requests/s)", [step.rate for step in self.steps])

    def _limit_rule(self) -> list[ReferenceLine]:
        return [] if self.limit is None else [ReferenceLine(self.limit, f"limit {format_number(self.limit)}/s", "x")]


def autoscaler_targets(results: Sequence[Result], replicas: int) -> AutoscalerTargets | None:
    """From the runs at the limit; None without any running requests to count."""
    running, source = _gauge(results, _RUNNING)
    if not running:
        running = [float(second.in_flight) for run in results for second in run.timeline if second.stage == "measure"]
        source = "requests in flight, by the client"
    waiting, _ = _gauge(results, _WAITING)
    if not any(running):
        return None
    at_limit = sum(running) / len(running) / replicas
    # A number of waiting requests that a replica within its SLO nearly always has is no sign that it is full.
    usual_waiting = sorted(waiting)[ceil(0.95 * len(waiting)) - 1] / replicas if waiting else 0.0
    return AutoscalerTargets(
        running=max(1, int(at_limit * HEADROOM)),
        running_at_limit=round(at_limit, 3),
        waiting=max(1, ceil(usual_waiting)),
        source=source,
    )


def _gauge(results: Sequence[Result], names: Sequence[str]) -> tuple[list[float], str]:
    """The values and the name of the first of these series that has any, during the measured stages."""
    for name in names:
        values = [
            value
            for run in results
            for t_s, value in run.server.series.get(name, ())
            if run.run.warmup_s <= t_s <= run.run.warmup_s + run.run.duration_s
        ]
        # A gauge that is there and never moves is one that this server does not maintain.
        if any(values):
            return values, name
    return [], ""


def _means(values: Iterable[tuple[float, float]]) -> list[tuple[float, float | None]]:
    by_rate: dict[float, list[float]] = {}
    for rate, value in values:
        by_rate.setdefault(rate, []).append(value)
    return [(rate, sum(values_) / len(values_)) for rate, values_ in sorted(by_rate.items())]


def _value(check: Check) -> str:
    return format_ms(check.value) if check.name.endswith("_ms") else format_percent(check.value)
