"""Finds the highest rate at which a server meets its SLO: exponential steps up, then bisection.

Runs are noisy and servers not always monotonous. So no single run decides against a rate (a miss is measured once more)
or for it (the rate found is measured again, and withdrawn if that misses twice). A generator that cannot keep up ends
the search, since it cannot judge higher rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isclose

from loadtest.analysis.sweep_result import Step, SweepResult, autoscaler_targets
from loadtest.analysis.verdict import judge
from loadtest.formatting import format_number
from loadtest.measure.result import Outcome, Result
from loadtest.scenario.slo import Slo

_GROWTH = 2.0
# How often a rate that was found may be withdrawn; each time costs several runs.
_MAX_WITHDRAWN = 3


def sweep(
    measure: Callable[[float], Result],
    slo: Slo,
    low: float,
    high: float,
    precision: float,
    *,
    replicas: int = 1,
    on_step: Callable[[str], object] = lambda _: None,
) -> SweepResult:
    """Search between two rates (requests per second) until the limit is known to a part of `precision` (0.05: 5 %).

    `measure` runs the load at a rate. `replicas`: the number of servers that share it, for the autoscaler's targets.
    `on_step` receives a sentence for every step. Raises ValueError where the search cannot begin."""
    if not 0 < low <= high:
        raise ValueError(f"sweep: low ({low:g}) must be above 0 and not above high ({high:g})")
    if not 0 < precision < 1:
        raise ValueError(f"sweep: precision ({precision:g}) is a part of the rate, between 0 and 1; 0.05 is 5 %")
    if replicas < 1:
        raise ValueError(f"sweep: replicas ({replicas}) must be at least 1")
    search = _Search(measure, slo, on_step)
    try:
        ended = search.run(low, high, precision)
    except _GeneratorTooSlow as invalid:
        ended = (
            f"the generator could not keep up at {format_number(invalid.rate)}/s, so higher rates cannot be judged "
            "with it: more workers or another machine are needed"
        )
    limit = search.best
    at_limit = [result for rate, result in search.passed if limit is not None and isclose(rate, limit)]
    return SweepResult(
        low=low,
        high=high,
        precision=precision,
        limit=limit,
        steps=search.steps,
        ended=ended,
        notes=search.notes(),
        autoscaler=autoscaler_targets(at_limit, replicas) if at_limit else None,
    )


class _GeneratorTooSlow(Exception):
    """The generator did not keep up, twice."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.rate = rate


@dataclass(slots=True)
class _Search:
    measure: Callable[[float], Result]
    slo: Slo
    on_step: Callable[[str], object]
    steps: list[Step] = field(default_factory=list)
    passed: list[tuple[float, Result]] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)

    @property
    def best(self) -> float | None:
        """The highest rate that passed and is below every failed one."""
        floor = min(self.failed, default=float("inf"))
        return max((rate for rate, _ in self.passed if rate < floor), default=None)

    def run(self, low: float, high: float, precision: float) -> str:
        """Search. Returns how it ended."""
        rate = low
        while self.meets_slo(rate) and rate < high:
            rate = min(rate * _GROWTH, high)
        withdrawn = 1
        while True:
            best, worst = self.best, min(self.failed, default=None)
            if best is None:
                return f"even {format_number(low)}/s missed the SLO"
            if worst is not None and worst - best > precision * best:
                self.meets_slo((best + worst) / 2)
            elif self.is_confirmed(best):
                if worst is None:
                    highest = format_number(high)
                    return f"the highest rate of the search, {highest}/s, met the SLO: the limit may lie above it"
                return f"the next rate tried, {format_number(worst)}/s, missed it twice"
            elif withdrawn == _MAX_WITHDRAWN:
                return (
                    f"of the rates found, {withdrawn} missed the SLO when measured again: runs vary too much for more"
                )
            else:
                withdrawn += 1

    def meets_slo(self, rate: float) -> bool:
        """Whether a rate meets the SLO; a miss is measured once more. Raises _GeneratorTooSlow."""
        step = self.run_step(rate)
        if step.outcome != Outcome.PASS:
            step = self.run_step(rate)
        if step.outcome == Outcome.INVALID:
            raise _GeneratorTooSlow(rate)
        if step.outcome != Outcome.PASS:
            self.failed.append(rate)
        return step.outcome == Outcome.PASS

    def is_confirmed(self, rate: float) -> bool:
        """Whether a rate has passed twice, or does so now."""
        return sum(isclose(rate, each) for each, _ in self.passed) > 1 or self.meets_slo(rate)

    def run_step(self, rate: float) -> Step:
        result = self.measure(rate)
        verdict = judge(result.summary, result.generator, result.integrity, result.server, self.slo)
        step = Step.from_result(rate, result, verdict)
        self.steps.append(step)
        if step.outcome == Outcome.PASS:
            self.passed.append((rate, result))
        self.on_step(step.sentence())
        return step

    def notes(self) -> list[str]:
        """Reservations about the limit."""
        notes = []
        for rate in sorted({step.rate for step in self.steps}):
            outcomes = [step.outcome for step in self.steps if step.rate == rate]
            passes = outcomes.count(Outcome.PASS)
            if 0 < passes < len(outcomes):
                notes.append(
                    f"at {format_number(rate)}/s {passes} of {len(outcomes)} runs met the SLO: the limit is not sharp"
                )
        violated = sorted({step.rate for step in self.steps if step.outcome == Outcome.INTEGRITY})
        if violated:
            rates = ", ".join(f"{format_number(rate)}/s" for rate in violated)
            notes.append(
                f"at {rates} streams were incomplete or incorrect, which is worse than slow: examine those first"
            )
        return notes
