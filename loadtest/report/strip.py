"""A confidence interval in a table's cell, as SVG, with the position of "no change". Pure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 180, 18
_EDGE = 6


@dataclass(frozen=True, slots=True)
class IntervalStrip:
    """`low` to `high` around `value`, on an axis that reaches `span` to either side of `centre`; changes within `slack`
    of it are too small to matter."""

    low: float
    value: float
    high: float
    centre: float
    slack: float
    span: float
    name: str
    text: str

    def __html__(self) -> str:
        """For templates, which must not escape it: its texts are escaped here."""
        low, value, high = (self._x(value_) for value_ in (self.low, self.value, self.high))
        left, right = self._x(self.centre - self.slack), self._x(self.centre + self.slack)
        middle = _HEIGHT / 2
        return (
            f'<svg class="strip {escape(self.name)}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escape(self.text)}" xmlns="http://www.w3.org/2000/svg">'
            f'<rect class="band" x="{left:.1f}" y="0" width="{max(right - left, 0.5):.1f}" height="{_HEIGHT}"/>'
            f'<path class="axis" d="M{self._x(self.centre):.1f} 0V{_HEIGHT}"/>'
            f'<path class="reach" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} 5v8M{high:.1f} 5v8"/>'
            f'<circle class="spot" cx="{value:.1f}" cy="{middle}" r="3.2"/></svg>'
        )

    def _x(self, value: float) -> float:
        """A value beyond the axis is drawn at its end."""
        part = min(max((value - self.centre) / self.span, -1.0), 1.0)
        return _WIDTH / 2 + part * (_WIDTH / 2 - _EDGE)
