"""Axes: the position of a value between 0 and 1, and the ticks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, log10

from loadtest.formatting import format_number

# Above this ratio of the largest to the smallest value, a linear axis compresses the small ones too much.
_LOG_FROM = 20
_PERCENTILES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


class Axis:
    title: str

    def position(self, value: float) -> float:
        """Between 0 and 1 for values that the axis covers."""
        raise NotImplementedError

    def ticks(self) -> list[tuple[float, str]]:
        """Positions and labels."""
        raise NotImplementedError

    def covers(self, value: float) -> bool:
        return -1e-9 <= self.position(value) <= 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Linear(Axis):
    """From zero (or below it, if values are) to a round number."""

    title: str
    low: float
    high: float
    step: float

    @classmethod
    def over(cls, title: str, values: Iterable[float], *, low: float = 0.0, around: int = 5) -> Linear:
        """Wide enough for all values, with about `around` steps."""
        values_ = list(values)
        top = max([low, *values_])
        bottom = min([low, *values_])
        step = _round_step((top - bottom) / around) if (top - bottom) / around > 0 else 1.0
        return cls(title, floor(bottom / step + 1e-9) * step, max(ceil(top / step - 1e-9), 1) * step, step)

    def position(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        steps = round((self.high - self.low) / self.step)
        values = [self.low + i * self.step for i in range(steps + 1)]
        return [(self.position(value), _tick_label(value)) for value in values]


@dataclass(frozen=True, slots=True)
class Log(Axis):
    """By powers of ten."""

    title: str
    low: float
    high: float

    @classmethod
    def over(cls, title: str, values: Iterable[float]) -> Log:
        """Wide enough for all values above zero."""
        values_ = [value for value in values if value > 0]
        low, high = _round_down(min(values_, default=1.0)), _round_up(max(values_, default=10.0))
        return cls(title, low, high if high > low else low * 10)

    def position(self, value: float) -> float:
        return (log10(max(value, self.low)) - log10(self.low)) / (log10(self.high) - log10(self.low))

    def ticks(self) -> list[tuple[float, str]]:
        first, last = floor(log10(self.low) + 1e-9), ceil(log10(self.high) - 1e-9)
        steps = (1,) if last - first > 3 else (1, 2, 5)
        values = [10.0**power * step for power in range(first, last + 1) for step in steps]
        return [(self.position(v), _tick_label(v)) for v in values if self.low * 0.999 <= v <= self.high * 1.001]


@dataclass(frozen=True, slots=True)
class PercentileTail(Axis):
    """Percentiles, each nine as wide as the one before, so that tails are visible. Values are shares from 0 to 1."""

    title: str
    last: float

    @classmethod
    def over(cls, title: str, count: int) -> PercentileTail:
        """As far as `count` samples reach."""
        return cls(title, min(max(log10(2 * max(count, 1)), 1.0), 5.0))

    def position(self, value: float) -> float:
        return min(-log10(max(1 - value, 1e-12)) / self.last, 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        return [
            (self.position(q), format_number(q * 100, 7)) for q in _PERCENTILES if -log10(1 - q) <= self.last + 1e-9
        ]


@dataclass(frozen=True, slots=True)
class Time(Axis):
    """Seconds since the beginning, labelled in minutes or hours where there are many."""

    title: str
    high: float
    unit_s: int
    step: float

    @classmethod
    def over(cls, seconds: float) -> Time:
        unit_s, name = (1, "s") if seconds <= 180 else (60, "min") if seconds <= 3 * 3600 else (3600, "h")
        span = max(seconds, 1) / unit_s
        return cls(f"time ({name})", span, unit_s, _round_step(span / 6))

    def position(self, value: float) -> float:
        return value / self.unit_s / self.high

    def ticks(self) -> list[tuple[float, str]]:
        return [
            (i * self.step / self.high, _tick_label(i * self.step)) for i in range(floor(self.high / self.step) + 1)
        ]


def latency_axis(title: str, values: Iterable[float]) -> Axis:
    """Linear, unless the largest value is so far from the smallest that a logarithm shows more."""
    values_ = [value for value in values if value > 0]
    if values_ and max(values_) / min(values_) > _LOG_FROM:
        return Log.over(f"{title}, log", values_)
    return Linear.over(title, values_)


def _round_step(step: float) -> float:
    power = 10.0 ** floor(log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if step <= power * factor * (1 + 1e-9))


def _round_down(value: float) -> float:
    power = 10.0 ** floor(log10(value) + 1e-12)
    return max(factor * power for factor in (1, 2, 5) if factor * power <= value * (1 + 1e-9))


def _round_up(value: float) -> float:
    power = 10.0 ** floor(log10(value) + 1e-12)
    return min(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def _tick_label(value: float) -> str:
    """1,500,000 is 1.5M."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return format_number(value / (1e3 if name == "k" else size)) + name
    return format_number(round(value, 9))
