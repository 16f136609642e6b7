"""What comparing two runs found, and how it is said: for the terminal, for CI, as a page. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from loadtest.formatting import NONE, ms, number, share, signed
from loadtest.measure.result import Result
from loadtest.report import page
from loadtest.report.markdown import escaped, table
from loadtest.report.strip import Strip

__all__ = ["Change", "Comparison", "Row"]

_HEAD = ("", "a", "b", "b / a", "95 % interval", "")


class Change(StrEnum):
    """What became of a number."""

    REGRESSED = "regressed"
    IMPROVED = "improved"
    SAME = "same"
    UNCLEAR = "unclear"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """One number of both runs. `change`, `low` and `high` are of the ratio b to a; of a share, of the difference."""

    name: str
    unit: Literal["ms", "/s", "%"]
    a: float | None
    b: float | None
    became: Change
    change: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    """Why the change is unknown, or what can be said of an unclear one."""

    @property
    def is_difference(self) -> bool:
        """Whether the change is a difference of shares, not a ratio."""
        return self.unit == "%"

    def words(self) -> tuple[str, str, str, str, str, str]:
        """Name, a, b, change, interval, what became of it."""
        between = NONE if self.low is None else f"{self._change(self.low)} to {self._change(self.high)}"
        became = f"{self.became}: {self.why}" if self.why else str(self.became)
        return self.name, self._value(self.a), self._value(self.b), self._change(self.change), between, became

    def _value(self, value: float | None) -> str:
        match self.unit:
            case "ms":
                return ms(value)
            case "%":
                return share(value)
            case "/s":
                return NONE if value is None else f"{number(value)}/s"

    def _change(self, value: float | None) -> str:
        if value is None:
            return NONE
        return f"{signed(value * 100)} pp" if self.is_difference else f"x {value:.3f}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run b against run a."""

    a: Result
    b: Result
    rows: Sequence[Row]
    warnings: Sequence[str]
    tolerance: float

    @property
    def regressed(self) -> bool:
        """Whether anything got worse beyond chance and tolerance."""
        return any(row.became == Change.REGRESSED for row in self.rows)

    @property
    def headline(self) -> str:
        """The answer in a sentence."""
        worse = [row.name for row in self.rows if row.became == Change.REGRESSED]
        if worse:
            return f"Regressed: {', '.join(worse)}"
        if all(row.became == Change.UNKNOWN for row in self.rows):
            return "Nothing could be compared"
        unclear = sum(row.became == Change.UNCLEAR for row in self.rows)
        return f"No regression found{f'; too much chance to tell of {unclear} numbers' if unclear else ''}"

    @property
    def method(self) -> str:
        """How the intervals were made, for those who read them."""
        return (
            "b to a, with 95 % intervals by a circular block bootstrap over the seconds of the measured stage. "
            f"Regressed: the whole interval is worse by more than {share(self.tolerance)}; same: it is within that; "
            "unclear: it reaches beyond. What differs from run to run but not within one is not covered."
        )

    def text(self) -> str:
        """A table for the terminal."""
        cells = [_HEAD, *(row.words() for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
        lines = [
            "  ".join(
                cell.rjust(width) if 0 < at < len(_HEAD) - 1 else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        parts = [*(f"warning: {each}" for each in self.warnings), *lines, "", self.method, self.headline]
        return "\n".join(parts) + "\n"

    def markdown(self) -> str:
        """The same for a CI job's page."""
        parts = [
            f"## {self.headline}",
            "\n".join(f"- warning: {escaped(each)}" for each in self.warnings),
            table(_HEAD, [row.words() for row in self.rows]),
            escaped(self.method),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def html(self) -> str:
        """The same as a page of its own, with the intervals drawn."""
        return page.render(
            "compare.html",
            {
                "title": f"Comparison: {self.headline}",
                "comparison": self,
                "rows": [(row, self._strip(row)) for row in self.rows],
            },
        )

    def _strip(self, row: Row) -> Strip | None:
        if row.low is None or row.high is None or row.change is None:
            return None
        centre = 0.0 if row.is_difference else 1.0
        slack = self.tolerance * (row.a or 0.0) if row.is_difference else self.tolerance
        # All ratios share an axis, so that they can be compared by eye; shares are of another kind.
        alike = [each for each in self.rows if each.is_difference == row.is_difference]
        span = max(abs(end - centre) for each in alike for end in (each.low, each.high) if end is not None)
        text = f"{row.name}: {row.words()[3]}, 95 % interval {row.words()[4]}"
        # A single wild number must not press the others flat.
        span = max(min(span, 1.0), 2 * slack, 1e-9)
        return Strip(row.low, row.change, row.high, centre, slack, span, str(row.became), text)
