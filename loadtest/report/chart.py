"""One chart as SVG. Pure.

Lines differ by colour and by dash, so that either suffices; colours are classes, which the page's style sheet maps to a
palette for light, dark and paper. The values are beside the picture as JSON, for the script that shows them under the
pointer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal
from zlib import crc32

from loadtest.formatting import format_number
from loadtest.report.scale import Axis

WIDTH, HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 40
PLOT_W, PLOT_H = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
# A label of eleven pixels needs about this much space beside the next.
_LABEL_GAP = 30
_CHAR = 6.2

Kind = Literal["line", "bars", "points", "crosses"]


@dataclass(frozen=True, slots=True)
class Line:
    """One series. A value of None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0
    kind: Kind = "line"


@dataclass(frozen=True, slots=True)
class Band:
    """A shaded part of the x axis."""

    since: float
    until: float
    label: str


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A straight line with a label: a limit on the y axis, or a position on the x axis."""

    at: float
    label: str
    axis: Literal["x", "y"] = "y"


@dataclass(frozen=True, slots=True)
class Chart:
    """`description` is the text alternative of the picture."""

    title: str
    description: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    unit: str = ""
    bands: Sequence[Band] = ()
    reference_lines: Sequence[ReferenceLine] = ()
    x_name: str = "t"
    note: str = ""
    x_labels: Sequence[str] = field(default_factory=tuple)
    """The pointer's label for each x of the first line, where the number alone would not do."""

    @property
    def is_empty(self) -> bool:
        return not any(value is not None for line in self.lines for _, value in line.points)

    @property
    def is_stacked(self) -> bool:
        """Whether bars are stacked."""
        return bool(self.lines) and all(line.kind == "bars" for line in self.lines)

    def svg(self) -> str:
        name = f"c{crc32(f'{self.title}/{self.description}'.encode()):x}"
        head = (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}t {name}d" '
            f'data-chart="{escape(self._hover_data())}" xmlns="http://www.w3.org/2000/svg">'
        )
        drawn = self._stacked_bars() if self.is_stacked else [part for line in self.lines for part in self._line(line)]
        parts = [
            head,
            f'<title id="{name}t">{escape(self.title)}</title><desc id="{name}d">{escape(self.description)}</desc>',
            *self._bands(),
            *self._grid(),
            *drawn,
            *self._reference_lines(),
            "</svg>",
        ]
        return "".join(parts)

    def __html__(self) -> str:
        """For templates, which must not escape it: `svg` has done so."""
        return self.svg()

    def _x(self, value: float) -> float:
        return _LEFT + self.x.position(value) * PLOT_W

    def _y(self, value: float) -> float:
        return _TOP + (1 - min(max(self.y.position(value), 0.0), 1.0)) * PLOT_H

    def _grid(self) -> list[str]:
        bottom = _TOP + PLOT_H
        elements = []
        for place, label in self.y.ticks():
            y = _TOP + (1 - place) * PLOT_H
            elements.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
            elements.append(
                f'<text class="tick" x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{escape(label)}</text>'
            )
        occupied_until = -float(_LABEL_GAP)
        for place, label in self.x.ticks():
            x = _LEFT + place * PLOT_W
            elements.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
            half = len(label) * _CHAR / 2
            if x - half < occupied_until:
                continue
            # The last label must not be cut by the edge.
            is_cut = x + half > WIDTH
            elements.append(
                f'<text class="tick" x="{WIDTH - 1 if is_cut else round(x, 1)}" y="{bottom + 15}" '
                f'text-anchor="{"end" if is_cut else "middle"}">{escape(label)}</text>'
            )
            occupied_until = x + half + 4
        elements.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{WIDTH - _RIGHT}"/>')
        elements.append(
            f'<text class="name" x="{_LEFT + PLOT_W / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{escape(self.x.title)}</text>"
        )
        elements.append(
            f'<text class="name" transform="translate(9 {_TOP + PLOT_H / 2:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y.title)}</text>"
        )
        return elements

    def _bands(self) -> list[str]:
        elements = []
        for band in self.bands:
            x, width = self._x(band.since), self._x(band.until) - self._x(band.since)
            elements.append(
                f'<rect class="band" x="{x:.1f}" y="{_TOP}" width="{max(width, 1):.1f}" height="{PLOT_H}">'
                f"<title>{escape(band.label)}</title></rect>"
            )
        return elements

    def _line(self, line: Line) -> list[str]:
        if line.kind == "points":
            return [
                f'<circle class="dot c{line.colour}" cx="{self._x(x):.1f}" cy="{self._y(value):.1f}" r="3.5"/>'
                for x, value in line.points
                if value is not None
            ]
        if line.kind == "crosses":
            return [
                f'<path class="cross c{line.colour}" d="M{self._x(x) - 4:.1f} {self._y(value) - 4:.1f}l8 8m0 -8l-8 8"/>'
                for x, value in line.points
                if value is not None
            ]
        path, dots, pen = [], [], "M"
        points = list(line.points)
        for at, (x, value) in enumerate(points):
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{self._x(x):.1f} {self._y(value):.1f}")
            is_isolated = pen == "M" and (at + 1 == len(points) or points[at + 1][1] is None)
            pen = "L"
            # A path of one point is invisible.
            if is_isolated:
                dots.append(
                    f'<circle class="dot c{line.colour}" cx="{self._x(x):.1f}" cy="{self._y(value):.1f}" r="2.2"/>'
                )
        return [f'<path class="line c{line.colour}" d="{"".join(path)}"/>', *dots]

    def _stacked_bars(self) -> list[str]:
        bases: dict[float, float] = {}
        width = max(1.0, min(PLOT_W / max(len(self.lines[0].points), 1) * 0.8, 14.0))
        elements = []
        for line in self.lines:
            for x, value in line.points:
                if not value:
                    continue
                base = bases.get(x, 0.0)
                top, foot = self._y(base + value), self._y(base)
                bases[x] = base + value
                elements.append(
                    f'<rect class="bar c{line.colour}" x="{self._x(x) - width / 2:.1f}" y="{top:.1f}" '
                    f'width="{width:.1f}" height="{max(foot - top, 0.5):.1f}"/>'
                )
        return elements

    def _reference_lines(self) -> list[str]:
        elements = []
        for line in self.reference_lines:
            axis = self.y if line.axis == "y" else self.x
            if not axis.covers(line.at):
                continue
            if line.axis == "y":
                y = self._y(line.at)
                # Above the line, unless that is outside the chart.
                text_y = y - 4 if y > _TOP + 14 else y + 12
                elements.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
                elements += _boxed_label(_LEFT + 5, text_y, line.label, "start")
            else:
                x = self._x(line.at)
                is_right_half = x > _LEFT + PLOT_W / 2
                elements.append(f'<path class="rule" d="M{x:.1f} {_TOP}V{_TOP + PLOT_H}"/>')
                elements += _boxed_label(
                    x - 4 if is_right_half else x + 4, _TOP + 11, line.label, "end" if is_right_half else "start"
                )
        return elements

    def _hover_data(self) -> str:
        """Positions and texts for the script, which therefore needs no axes."""
        longest = max(self.lines, key=lambda line: len(line.points), default=Line("", ()))
        xs = [x for x, _ in longest.points]
        labels = list(self.x_labels) or [f"{self.x_name} {format_number(x)}" for x in xs]
        series = [
            {
                "n": line.name,
                "c": line.colour,
                "v": ["" if value is None else f"{format_number(value)}{self.unit}" for value in _values_at(line, xs)],
            }
            for line in self.lines
        ]
        plot = [_LEFT, _TOP, PLOT_W, PLOT_H]
        return json.dumps(
            {"box": plot, "w": WIDTH, "x": [round(self._x(x), 1) for x in xs], "l": labels, "s": series},
            separators=(",", ":"), ensure_ascii=False,
        )  # fmt: skip


def _boxed_label(x: float, y: float, text: str, anchor: Literal["start", "end"]) -> list[str]:
    """A label amid the lines, on a background of its own."""
    width = len(text) * _CHAR
    left = x if anchor == "start" else x - width
    return [
        f'<rect class="ground" x="{left - 2:.1f}" y="{y - 9:.1f}" width="{width + 4:.1f}" height="12" rx="2"/>',
        f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>',
    ]


def _values_at(line: Line, xs: Sequence[float]) -> list[float | None]:
    known = dict(line.points)
    return [known.get(x) for x in xs]
