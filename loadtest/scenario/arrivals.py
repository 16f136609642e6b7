"""Arrival schedules: the moments at which requests are due, in seconds from the start of the run. Pure and seeded.

A process defines how regular arrivals are (Poisson, gamma, constant gaps), a rate how many arrive at which time. The
process is generated at a rate of one; each of its points is then moved to the time at which the integral of the wanted
rate reaches it. For a Poisson process this gives exactly the inhomogeneous one.

Of n workers, number i takes arrivals i, i + n, i + 2n, ... of the one schedule that all of them compute. The server
sees that schedule, to the last arrival, whatever the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice, pairwise
from random import Random
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from loadtest.scenario.distributions import Constant as ConstantAmount
from loadtest.scenario.distributions import Distribution, StrictModel

Process = Literal["poisson", "constant"]
_T = TypeVar("_T")


class OpenLoop(StrictModel):
    def expected_count(self, t_s: float, duration_s: float) -> float:
        """Expected number of arrivals until `t_s`, in a run of `duration_s`."""
        raise NotImplementedError

    def next_gap(self, rng: Random) -> float:
        """One gap of the process at a rate of one."""
        raise NotImplementedError

    def arrival_times(self, seed: int, duration_s: float) -> Iterator[float]:
        """All arrivals of a run of `duration_s`, in order."""
        # A generator apart from those of the requests, whose seeds begin with the same number.
        rng = Random(f"{seed}/arrivals")
        due, t_s = 0.0, 0.0
        total = self.expected_count(duration_s, duration_s)
        while (due := due + self.next_gap(rng)) < total:
            t_s = self._time_of(due, t_s, duration_s)
            yield t_s

    def mean_rate(self, duration_s: float) -> float:
        """Arrivals per second over the whole run."""
        return self.expected_count(duration_s, duration_s) / duration_s

    def _time_of(self, due: float, low: float, high: float) -> float:
        duration_s = high
        # 1e-7 s is far below the precision of a timer.
        while high - low > 1e-7:
            middle = (low + high) / 2
            if self.expected_count(middle, duration_s) < due:
                low = middle
            else:
                high = middle
        return high


class _ConstantRate(OpenLoop):
    rate: float = Field(gt=0, le=1_000_000, description="Arrivals per second.")

    def expected_count(self, t_s: float, duration_s: float) -> float:
        return self.rate * t_s

    def _time_of(self, due: float, low: float, high: float) -> float:
        return due / self.rate


class Poisson(_ConstantRate):
    """Independent arrivals, as of many users who act independently."""

    kind: Literal["poisson"]

    def next_gap(self, rng: Random) -> float:
        return rng.expovariate(1.0)


class ConstantRate(_ConstantRate):
    """Equal gaps."""

    kind: Literal["constant"]

    def next_gap(self, rng: Random) -> float:
        return 1.0


class Gamma(_ConstantRate):
    """Gaps with the coefficient of variation `cv`: 1 is Poisson, above it arrivals come in bursts."""

    kind: Literal["gamma"]
    cv: float = Field(gt=0, le=10)

    def next_gap(self, rng: Random) -> float:
        shape = 1 / self.cv**2
        return rng.gammavariate(shape, 1 / shape)


class _VaryingRate(OpenLoop):
    process: Process = "poisson"

    def next_gap(self, rng: Random) -> float:
        return rng.expovariate(1.0) if self.process == "poisson" else 1.0


class Ramp(_VaryingRate):
    """From one rate to another, linearly over the whole run."""

    kind: Literal["ramp"]
    start: float = Field(ge=0, le=1_000_000)
    end: float = Field(ge=0, le=1_000_000)

    @model_validator(mode="after")
    def _check_rates(self) -> Ramp:
        if self.start + self.end <= 0:
            raise ValueError("start and end are both 0; raise one of them")
        return self

    def expected_count(self, t_s: float, duration_s: float) -> float:
        return self.start * t_s + (self.end - self.start) * t_s * t_s / (2 * duration_s)


class Step(_VaryingRate):
    """Piecewise constant rates: `steps: [[0, 5], [60, 10]]` is 5/s for a minute, then 10/s."""

    kind: Literal["step"]
    steps: tuple[tuple[float, float], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_steps(self) -> Step:
        times = [t_s for t_s, _ in self.steps]
        if times[0] != 0 or any(later <= earlier for earlier, later in pairwise(times)):
            raise ValueError("steps are [seconds, rate] pairs that begin at 0 seconds and go on in time")
        if any(rate < 0 for _, rate in self.steps) or not any(rate > 0 for _, rate in self.steps):
            raise ValueError("rates are 0 or more, and one of them above 0")
        return self

    def expected_count(self, t_s: float, duration_s: float) -> float:
        ends = [*(at_s for at_s, _ in self.steps[1:]), math.inf]
        return sum(
            rate * max(0.0, min(t_s, end_s) - at_s) for (at_s, rate), end_s in zip(self.steps, ends, strict=True)
        )


class Spike(_VaryingRate):
    """A base rate, and a peak that begins at `at_s` and lasts for `for_s`."""

    kind: Literal["spike"]
    base: float = Field(gt=0, le=1_000_000)
    peak: float = Field(gt=0, le=1_000_000)
    at_s: float = Field(ge=0)
    for_s: float = Field(gt=0)

    def expected_count(self, t_s: float, duration_s: float) -> float:
        inside = max(0.0, min(t_s, self.at_s + self.for_s) - self.at_s)
        return self.base * t_s + (self.peak - self.base) * inside


class Sine(_VaryingRate):
    """Days and nights: a sine of `amplitude` around `mean`, with the period `period_s`."""

    kind: Literal["sine"]
    mean: float = Field(gt=0, le=1_000_000)
    amplitude: float = Field(ge=0)
    period_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _check_amplitude(self) -> Sine:
        if self.amplitude > self.mean:
            raise ValueError(
                f"amplitude ({self.amplitude:g}) is above mean ({self.mean:g}); the rate would be negative"
            )
        return self

    def expected_count(self, t_s: float, duration_s: float) -> float:
        turn = 2 * math.pi / self.period_s
        return self.mean * t_s + self.amplitude / turn * (1 - math.cos(turn * t_s))


class TraceReplay(StrictModel):
    """Recorded arrivals and lengths; `loadtest/scenario/traces.py` reads the file."""

    kind: Literal["trace"]
    file: str
    format: Literal["azure", "mooncake"]
    speed: float = Field(1.0, gt=0, description="2: twice as fast as it was recorded.")
    share: float = Field(1.0, gt=0, le=1, description="Share of the recorded requests, chosen by the seed.")


class ClosedLoop(StrictModel):
    """A closed loop of `users`, each of whom waits for the answer, thinks, and sends the next request."""

    kind: Literal["closed"]
    users: int = Field(ge=1, le=100_000)
    think_s: Distribution = ConstantAmount(value=0)
    spawn_rate: float = Field(100.0, gt=0, description="Users that begin per second.")


Open = Poisson | ConstantRate | Gamma | Ramp | Step | Spike | Sine
Load = Annotated[Open | TraceReplay | ClosedLoop, Field(discriminator="kind")]


def worker_share(arrivals: Iterator[_T], index: int, count: int) -> Iterator[tuple[int, _T]]:
    """The arrivals of worker `index` of `count`, each with its number in the whole schedule."""
    return islice(enumerate(arrivals), index, None, count)
