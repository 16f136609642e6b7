"""The result of a comparison, as text for the terminal, as Markdown for CI, and as a page. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from loadtest.formatting import MISSING, format_ms, format_number, format_percent, format_signed
from loadtest.measure.result import Result
from loadtest.report import page
from loadtest.report.markdown import escape, table
from loadtest.report.strip import IntervalStrip

_HEAD = ("", "a", "b", "b / a", "95 % interval", "")


class Trend(StrEnum):
    """How a number changed."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    SAME = "same"
    UNCLEAR = "unclear"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """One number of both runs. `change`, `low` and `high` are the ratio b to a; of a share, the difference."""

    name: str
    unit: Literal["ms", "/s", "%"]
    a: float | None
    b: float | None
    trend: Trend
    change: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    """Why the change is unknown, or on which side an unclear one mostly lies."""

    @property
    def is_difference(self) -> bool:
        """Whether the change is a difference of shares instead of a ratio."""
        return self.unit == "%"

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Name, a, b, change, interval, trend."""
        between = MISSING if self.low is None else f"{self._change(self.low)} to {self._change(self.high)}"
        became = f"{self.trend}: {self.why}" if self.why else str(self.trend)
        return self.name, self._value(self.a), self._value(self.b), self._change(self.change), between, became

    def _value(self, value: float | None) -> str:
        match self.unit:
            case "ms":
                return format_ms(value)
            case "%":
                return format_percent(value)
            case "/s":
                return MISSING if value is None else f"{format_number(value)}/s"

    def _change(self, value: float | None) -> str:
        if value is None:
            return MISSING
        return f"{format_signed(value * 100)} pp" if self.is_difference else f"x {value:.3f}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run b against run a."""

    a: Result
    b: Result
    rows: Sequence[Row]
    warnings: Sequence[str]
    tolerance: float

    @property
    def has_regressed(self) -> bool:
        """Whether any number is worse beyond chance and tolerance."""
        return any(row.trend == Trend.REGRESSED for row in self.rows)

    @property
    def headline(self) -> str:
        """The result in a sentence."""
        regressed = [row.name for row in self.rows if row.trend == Trend.REGRESSED]
        if regressed:
            return f"Regressed: {', '.join(regressed)}"
        if all(row.trend == Trend.UNKNOWN for row in self.rows):
            return "Nothing could be compared"
        unclear = sum(row.trend == Trend.UNCLEAR for row in self.rows)
        return f"No regression found{f'; {unclear} numbers vary too much for a conclusion' if unclear else ''}"

    @property
    def method(self) -> str:
        """How the intervals were computed."""
        return (
            "b to a, with 95 % intervals by a circular block bootstrap over the seconds of the measured stage. "
            f"Regressed: the whole interval is worse by more than {format_percent(self.tolerance)}; same: it is within "
            "that; unclear: it reaches beyond. Variation from run to run that does not show within one is not covered."
        )

    def text(self) -> str:
        """A table for the terminal."""
        cells = [_HEAD, *(row.cells() for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
        lines = [
            "  ".join(
                cell.rjust(width) if 0 < at < len(_HEAD) - 1 else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        parts = [*(f"warning: {warning}" for warning in self.warnings), *lines, "", self.method, self.headline]
        return "\n".join(parts) + "\n"

    def markdown(self) -> str:
        """For the page of a CI job."""
        parts = [
            f"## {self.headline}",
            "\n".join(f"- warning: {escape(warning)}" for warning in self.warnings),
            table(_HEAD, [row.cells() for row in self.rows]),
            escape(self.method),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def html(self) -> str:
        """A page with the intervals drawn."""
        return page.render(
            "compare.html",
            {
                "title": f"Comparison: {self.headline}",
                "comparison": self,
                "rows": [(row, self._strip(row)) for row in self.rows],
            },
        )

    def _strip(self, row: Row) -> IntervalStrip | None:
        if row.low is None or row.high is None or row.change is None:
            return None
        centre = 0.0 if row.is_difference else 1.0
        slack = self.tolerance * (row.a or 0.0) if row.is_difference else self.tolerance
        # All ratios share an axis, so that they can be compared by eye; shares are of another kind.
        same_kind = [row_ for row_ in self.rows if row_.is_difference == row.is_difference]
        span = max(abs(end - centre) for row_ in same_kind for end in (row_.low, row_.high) if end is not None)
        text = f"{row.name}: {row.cells()[3]}, 95 % interval {row.cells()[4]}"
        # A single outlier must not compress the others.
        span = max(min(span, 1.0), 2 * slack, 1e-9)
        return IntervalStrip(row.low, row.change, row.high, centre, slack, span, str(row.trend), text)
