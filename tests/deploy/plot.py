"""The dashboards drawn without Grafana: the same queries, asked of a Prometheus, as one page of SVG each.

    python -m tests.deploy.plot http://127.0.0.1:9090 FOLDER [SECONDS]

writes FOLDER/overview.html and FOLDER/streams.html of the last SECONDS (600).
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tests.deploy.panels import DASHBOARDS, Panel, panels
from tests.deploy.prometheus import Prometheus

# Grafana's grid: 24 columns over the page's width, rows of 30 pixels and a gap.
_WIDTH, _COLUMNS, _ROW, _GAP, _MARGIN = 1440, 24, 30, 8, 12
_COLOURS = (
    "#3274d9",
    "#e0752d",
    "#299c46",
    "#a352cc",
    "#c4162a",
    "#8f6b00",
    "#0f9c9c",
    "#5f6b7a",
    "#d44a8d",
    "#6a7f00",
)
_LEFT, _TOP, _LEGEND, _AXIS = 62, 30, 15, 18

Points = list[tuple[float, float]]


def page(dashboard: str, every: Sequence[Panel], source: Prometheus, seconds: float) -> str:
    """One dashboard's page, of the last `seconds`."""
    end_s = time.time()
    own = [panel for panel in every if panel.dashboard == dashboard]
    parts: list[str] = []
    row = ""
    for panel in own:
        if panel.row != row:
            row = panel.row
            _, y, _, _ = _box(panel)
            parts.append(f'<text x="{_MARGIN}" y="{y - 12}" class="row">{escape(row)}</text>')
        parts.append(_draw(panel, source, end_s - seconds, end_s))
    height = max(y + h for _, y, _, h in map(_box, own)) + _MARGIN
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Sluice: {escape(dashboard)}</title>
<style>body{{margin:0;background:#f4f5f7}}text{{font:11px sans-serif;fill:#333}}.row{{font:bold 15px sans-serif}}
.title{{font:bold 12px sans-serif}}.big{{font:bold 22px sans-serif}}.axis{{fill:#777}}.box{{fill:#fff;stroke:#ddd}}
.grid{{stroke:#e7e7e7}}polyline{{fill:none;stroke-width:1.5}}.limit{{stroke:#c4162a;stroke-dasharray:5 4}}</style>
<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}">{"".join(parts)}</svg></html>
"""


def _box(panel: Panel) -> tuple[float, float, float, float]:
    unit = (_WIDTH - 2 * _MARGIN) / _COLUMNS
    place = panel.place
    x, y = _MARGIN + place["x"] * unit, _MARGIN + place["y"] * _ROW
    return x, y, place["w"] * unit - _GAP, place["h"] * _ROW - _GAP


def _draw(panel: Panel, source: Prometheus, start_s: float, end_s: float) -> str:
    x, y, width, height = _box(panel)
    title = f'<text x="10" y="18" class="title">{escape(panel.title)}</text>'
    tip = f"<title>{escape(panel.text)}</title>"
    inside = (
        _numbers(panel, source, width) if panel.kind == "stat" else _graph(panel, source, start_s, end_s, width, height)
    )
    frame = f'<rect width="{width:.0f}" height="{height:.0f}" rx="3" class="box"/>'
    return f'<g transform="translate({x:.1f} {y:.1f})">{tip}{frame}{title}{inside}</g>'


def _numbers(panel: Panel, source: Prometheus, width: float) -> str:
    found = [
        (legend(query.legend, one["metric"]), float(one["value"][1]))
        for query in panel.queries
        for one in source.query(query.expression)
    ]
    if not found:
        return _nothing(width)
    each = (width - 20) / len(found)
    parts = []
    for number, (name, value) in enumerate(found):
        left = 10 + number * each
        colour = "#299c46"
        for name_of, limit in panel.limits:
            if value >= limit:
                colour = {"red": "#c4162a", "orange": "#e0752d"}[name_of]
        parts.append(
            f'<text x="{left:.0f}" y="58" class="big" style="fill:{colour}">{_format(value, panel.unit)}</text>'
        )
        parts.append(f'<text x="{left:.0f}" y="80">{escape(name)}</text>')
    return "".join(parts)


def _graph(panel: Panel, source: Prometheus, start_s: float, end_s: float, width: float, height: float) -> str:
    step_s = max(1.0, (end_s - start_s) / 300)
    series: list[tuple[str, Points]] = []
    for query in panel.queries:
        for one in source.query_range(query.expression, start_s, end_s, step_s):
            points = [(when, float(value)) for when, value in one["values"] if math.isfinite(float(value))]
            if points:
                series.append((legend(query.legend, one["metric"]), points))
    if not series:
        return _nothing(width)
    lines = math.ceil(len(series) / 3)
    bottom = height - _AXIS - lines * _LEGEND - 4
    highest = max(value for _, points in series for _, value in points)
    # A limit far above would press everything else to the ground.
    limits = [limit for _, limit in panel.limits if limit <= 3 * highest]
    top = _round_up(max([highest, *limits])) or 1.0

    def place(when: float, value: float) -> tuple[float, float]:
        across = (when - start_s) / (end_s - start_s)
        return _LEFT + across * (width - _LEFT - 10), bottom - value / top * (bottom - _TOP)

    parts = []
    for part in range(5):
        _, at = place(start_s, top * part / 4)
        parts.append(f'<line x1="{_LEFT}" x2="{width - 10:.0f}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        label = _format(top * part / 4, panel.unit)
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end" class="axis">{label}</text>')
    for part in range(4):
        when = start_s + (end_s - start_s) * part / 3
        at, _ = place(when, 0)
        anchor = ("start", "middle", "middle", "end")[part]
        clock = time.strftime("%H:%M:%S", time.gmtime(when))
        parts.append(f'<text x="{at:.0f}" y="{bottom + 14:.0f}" text-anchor="{anchor}" class="axis">{clock}</text>')
    for limit in limits:
        _, at = place(start_s, limit)
        parts.append(f'<line x1="{_LEFT}" x2="{width - 10:.0f}" y1="{at:.1f}" y2="{at:.1f}" class="limit"/>')
    for number, (name, points) in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        for piece in _pieces(points, step_s):
            where = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in piece)
            parts.append(f'<polyline points="{where}" style="stroke:{colour}"/>')
        left = 10 + (number % 3) * (width - 20) / 3
        at = bottom + _AXIS + 12 + (number // 3) * _LEGEND
        parts.append(f'<rect x="{left:.0f}" y="{at - 8:.0f}" width="10" height="3" style="fill:{colour}"/>')
        max_length = int((width - 20) / 3 / 6) - 3
        short = name if len(name) <= max_length else name[: max_length - 1] + "\u2026"
        parts.append(f'<text x="{left + 14:.0f}" y="{at:.0f}">{escape(short)}</text>')
    return "".join(parts)


def _pieces(points: Points, step_s: float) -> list[Points]:
    """Parted where there is no value."""
    pieces: list[Points] = [[]]
    for point in points:
        if pieces[-1] and point[0] - pieces[-1][-1][0] > 1.5 * step_s:
            pieces.append([])
        pieces[-1].append(point)
    return pieces


def _nothing(width: float) -> str:
    return f'<text x="{width / 2:.0f}" y="60" text-anchor="middle" class="axis">nothing to show</text>'


def legend(pattern: str, labels: dict[str, Any]) -> str:
    """What Grafana writes beside a series."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), pattern)


def _round_up(value: float) -> float:
    if value <= 0:
        return 0.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(nice * size for nice in (1, 1.5, 2, 3, 4, 5, 8, 10) if nice * size >= value * 0.999)


def _format(value: float, unit: str) -> str:
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{value:.3g} {name}"
            value /= 1024
    if unit == "s" and value < 1:
        return f"{1000 * value:.3g} ms"
    if unit == "s" and value >= 120:
        return f"{value / 60:.0f} min"
    suffix = {"s": " s", "reqps": "/s"}.get(unit, "")
    number = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return number + suffix


def main() -> None:
    url, folder, *rest = sys.argv[1:]
    source = Prometheus(url)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path in DASHBOARDS:
        text = page(path.stem, panels(".*"), source, float(rest[0]) if rest else 600.0)
        (Path(folder) / f"{path.stem}.html").write_text(text, encoding="utf-8")
    source.close()


if __name__ == "__main__":
    main()
