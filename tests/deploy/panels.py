"""The dashboards' panels and what they ask, with the variables filled in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.charts.chart import CHART

DASHBOARDS = sorted(CHART.glob("files/dashboards/*.json"))


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    dashboard: str
    row: str
    title: str
    text: str
    kind: str
    unit: str
    limits: tuple[tuple[str, float], ...]
    place: dict[str, int]
    queries: tuple[Query, ...]


def fill(expression: str, namespace: str, interval: str = "30s") -> str:
    """An expression as Grafana would send it."""
    values = {"$namespace": namespace, "$release": ".*", "$model": ".*", "$__rate_interval": interval}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression


def panels(namespace: str) -> list[Panel]:
    """All panels of all dashboards."""
    found: list[Panel] = []
    for path in DASHBOARDS:
        row = ""
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            if panel["type"] == "row":
                row = panel["title"]
            else:
                found.append(_panel(path.stem, row, panel, namespace))
    return found


def _panel(dashboard: str, row: str, panel: dict[str, Any], namespace: str) -> Panel:
    defaults = panel["fieldConfig"]["defaults"]
    # A graph shows its limits as lines only in this mode.
    shown = panel["type"] == "stat" or defaults["custom"]["thresholdsStyle"]["mode"] != "off"
    steps = defaults["thresholds"]["steps"] if shown else []
    return Panel(
        dashboard=dashboard,
        row=row,
        title=panel["title"],
        text=panel["description"],
        kind=panel["type"],
        unit=defaults["unit"],
        limits=tuple((step["color"], step["value"]) for step in steps if step["value"]),
        place=panel["gridPos"],
        queries=tuple(Query(fill(one["expr"], namespace), one["legendFormat"]) for one in panel["targets"]),
    )
