"""From aggregates to the result document of a run (`loadtest/measure/result.py`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from loadtest.generator.health import GeneratorHealth
from loadtest.measure.aggregates import Aggregates, GroupStats, SecondStats
from loadtest.measure.histogram import Histogram
from loadtest.measure.result import Generator, Group, Integrity, LatencyStats, Summary, TimelineSecond
from loadtest.scenario.model import Scenario


@dataclass(slots=True)
class CollectedRun:
    """All numbers that the workers reported."""

    scenario: Scenario
    aggregates: Aggregates
    workers: int
    worker_healths: list[GeneratorHealth] = field(default_factory=list)
    # Reasons why the run is invalid, beside the measured ones.
    notes: list[str] = field(default_factory=list)

    def summary(self) -> Summary:
        due, sent = self._rates()
        due_rate = None if self.scenario.is_closed_loop else due
        return _summary(self.aggregates.overall(), self.scenario.stages.measure_s, due_rate, sent)

    def groups(self) -> list[Group]:
        """By workload and tenant."""
        seconds = self.scenario.stages.measure_s
        return [
            Group(
                workload=workload, tenant=tenant, summary=_summary(numbers, seconds, None, numbers.requests / seconds)
            )
            for (workload, tenant), numbers in sorted(self.aggregates.groups.items())
        ]

    def timeline(self) -> list[TimelineSecond]:
        """By second."""
        return [
            _timeline_second(number, second, self._stage(number))
            for number, second in self.aggregates.ordered_seconds()
        ]

    def client_tokens(self) -> int:
        """Tokens of the whole run, warm-up and drain included."""
        return sum(second.output_tokens for second in self.aggregates.seconds.values())

    def generator(self) -> Generator:
        """Measurements of the generator, and whether they make the run invalid."""
        lag = Histogram()
        for health in self.worker_healths:
            lag.merge(health.lag)
        events = sum(health.events for health in self.worker_healths)
        cpu_us = sum(health.cpu_us for health in self.worker_healths)
        generator = Generator(
            workers=self.workers,
            lateness_ms=LatencyStats.from_histogram(self.aggregates.lateness),
            loop_lag_ms=LatencyStats.from_histogram(lag),
            cpu_share_max=max((health.cpu_share_max for health in self.worker_healths), default=0.0),
            dropped_arrivals=self.aggregates.dropped_count,
            events=events,
            cpu_us_per_event=round(cpu_us / events, 2) if events else None,
            invalid=[],
        )
        return generator.model_copy(update={"invalid": [*self.notes, *self._invalid_reasons(generator)]})

    def integrity(self, freed: bool | None) -> Integrity:
        return Integrity(
            checked_streams=self.aggregates.checked_streams,
            verified_tokens=self.aggregates.verified_tokens,
            violations=dict(self.aggregates.violations),
            examples=self.aggregates.examples,
            freed_after_cancels=freed,
        )

    def _invalid_reasons(self, generator: Generator) -> list[str]:
        limits, reasons = self.scenario.generator, []
        late, lag = generator.lateness_ms.p99, generator.loop_lag_ms.p99
        if late is not None and late > limits.lateness_p99_ms:
            reasons.append(f"requests were sent late: p99 {late:.1f} ms, limit {limits.lateness_p99_ms:g} ms")
        if lag is not None and lag > limits.loop_lag_p99_ms:
            reasons.append(f"the generator's loop lagged: p99 {lag:.1f} ms, limit {limits.loop_lag_p99_ms:g} ms")
        if generator.cpu_share_max > limits.cpu_share_max:
            reasons.append(
                f"a worker used {generator.cpu_share_max:.0%} of a core, limit {limits.cpu_share_max:.0%}; "
                "give it more workers"
            )
        due, sent = self._rates()
        if not self.scenario.is_closed_loop and due and sent / due < limits.achieved_share_min:
            reasons.append(
                f"{sent:.2f} requests/s were sent where {due:.2f} were due: {sent / due:.1%}, "
                f"at least {limits.achieved_share_min:.0%} is needed"
            )
        if generator.dropped_arrivals:
            reasons.append(
                f"{generator.dropped_arrivals} arrivals were dropped, because max_in_flight "
                f"({self.scenario.max_in_flight} per worker) was reached"
            )
        return reasons

    def _rates(self) -> tuple[float, float]:
        """Requests due and sent, per second of the measured stage."""
        seconds = self.scenario.stages.measure_s
        return self.aggregates.due_count / seconds, self.aggregates.sent_count / seconds

    def _stage(self, second: int) -> Literal["warmup", "measure", "drain"]:
        stages = self.scenario.stages
        if second < stages.warmup_s:
            return "warmup"
        return "measure" if second < stages.arrivals_s else "drain"


def _summary(numbers: GroupStats, seconds: float, due_rate: float | None, sent: float) -> Summary:
    return Summary(
        ttft_ms=LatencyStats.from_histogram(numbers.ttft),
        itl_ms=LatencyStats.from_histogram(numbers.itl),
        tpot_ms=LatencyStats.from_histogram(numbers.tpot),
        e2e_ms=LatencyStats.from_histogram(numbers.e2e),
        ttft_from_sent_ms=LatencyStats.from_histogram(numbers.ttft_sent),
        e2e_from_sent_ms=LatencyStats.from_histogram(numbers.e2e_sent),
        max_stall_ms=LatencyStats.from_histogram(numbers.stall),
        requests=numbers.requests,
        ok=numbers.ok,
        cancelled_by_plan=numbers.cancelled,
        errors_by_kind=dict(Counter(numbers.errors).most_common()),
        good=numbers.good,
        output_tokens=numbers.output_tokens,
        input_tokens=numbers.input_tokens,
        output_tokens_per_s=round(numbers.output_tokens / seconds, 3),
        achieved_rps=round(sent, 4),
        asked_rps=round(due_rate, 4) if due_rate is not None else None,
        goodput_rps=round(numbers.good / seconds, 4),
    )


def _timeline_second(number: int, second: SecondStats, stage: Literal["warmup", "measure", "drain"]) -> TimelineSecond:
    packed = second.to_dict()
    counts = {name: packed[name] for name in SecondStats.COUNTS}
    histograms = {name: packed.get(name, {}) for name in SecondStats.HISTOGRAMS}
    return TimelineSecond(t_s=number, stage=stage, **counts, **histograms, errors=packed["errors"])
