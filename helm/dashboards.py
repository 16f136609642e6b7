"""Write the Grafana dashboards of the chart, sluice/files/dashboards/*.json, from dashboards.yaml.

`python helm/dashboards.py` (`make docs`) writes them; a test compares them with the files that are checked in. Layout,
variables, links and the marks of engine restarts are common to all dashboards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

HELM = Path(__file__).parent
TARGET = HELM / "sluice" / "files" / "dashboards"

Json = dict[str, Any]

_CHOSEN = 'namespace=~"$namespace",app_kubernetes_io_instance=~"$release",sluice_model=~"$model"'
_SELECTORS = {"$S": f'job="sluice",{_CHOSEN}', "$R": _CHOSEN}
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_VARIABLES = {"namespace": "namespace", "release": "app_kubernetes_io_instance", "model": "sluice_model"}
# Grafana's grid.
_COLUMNS = 24
_HEIGHTS = {"stat": 4, "timeseries": 8}
_KEYS = {"title", "text", "type", "unit", "line", "thresholds", "quiet", "queries"}


def _variables() -> list[Json]:
    found: list[Json] = [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
    above: list[str] = ['job="sluice"']
    for name, label in _VARIABLES.items():
        query = f"label_values(sluice_build_info{{{','.join(above)}}}, {label})"
        found.append(
            {
                "name": name,
                "type": "query",
                "datasource": _SOURCE,
                "query": {"query": query, "refId": name},
                "refresh": 2,
                "multi": True,
                "includeAll": True,
                "allValue": ".*",
                "current": {"text": "All", "value": "$__all"},
            }
        )
        above.append(f'{label}=~"${name}"')
    return found


def _expression(text: str) -> str:
    for short, selector in _SELECTORS.items():
        text = text.replace(short, selector)
    return text


def _steps(panel: Json) -> list[Json]:
    """Colours by value; a panel with a `line` shows it where it turns red."""
    steps: list[Json] = [{"color": "green", "value": None}]
    limits = panel.get("thresholds") or ({"red": panel["line"]} if "line" in panel else {})
    return steps + [{"color": colour, "value": value} for colour, value in limits.items()]


def _panel(panel: Json, number: int, place: Json) -> Json:
    if unknown := panel.keys() - _KEYS:
        raise ValueError(f"dashboards.yaml: {panel['title']}: no code reads {sorted(unknown)}")
    kind = panel.get("type", "timeseries")
    defaults: Json = {
        "unit": panel.get("unit", "short"),
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": _steps(panel)},
    }
    if kind == "stat":
        options: Json = {
            "reduceOptions": {"values": False, "calcs": ["lastNotNull"], "fields": ""},
            "orientation": "auto",
            "textMode": "auto",
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
        }
    else:
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 10,
            "showPoints": "never",
            "thresholdsStyle": {"mode": "dashed" if "line" in panel else "off"},
        }
        options = {
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "title": panel["title"],
        "description": panel["text"],
        "type": kind,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "datasource": _SOURCE,
                "expr": _expression(query["expr"]),
                "legendFormat": query["legend"],
                "refId": chr(ord("A") + index),
            }
            for index, query in enumerate(panel["queries"])
        ],
    }


def _panels(rows: list[Json]) -> list[Json]:
    """Rows of panels: small ones side by side, large ones three in a line."""
    found: list[Json] = []
    y = 0
    for row in rows:
        place: Json = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        found.append(
            {
                "id": len(found) + 1,
                "title": row["title"],
                "type": "row",
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        y += 1
        panels = row["panels"]
        kinds = {panel.get("type", "timeseries") for panel in panels}
        if len(kinds) > 1:
            raise ValueError(f"dashboards.yaml: {row['title']}: stats and graphs need rows of their own")
        height = _HEIGHTS[kinds.pop()]
        for line in _lines(panels):
            for column, panel in enumerate(line):
                left = _COLUMNS * column // len(line)
                right = _COLUMNS * (column + 1) // len(line)
                place = {"x": left, "y": y, "w": right - left, "h": height}
                found.append(_panel(panel, len(found) + 1, place))
            y += height
    return found


def _lines(panels: list[Json]) -> list[list[Json]]:
    if panels[0].get("type") == "stat":
        return [panels]
    # Four in two lines of two; otherwise threes, and what is left shares the last line.
    wide = 2 if len(panels) in {2, 4} else 3
    return [panels[first : first + wide] for first in range(0, len(panels), wide)]


def _dashboard(name: str, content: Json) -> Json:
    return {
        "uid": f"sluice-{name}",
        "title": content["title"],
        "tags": ["sluice"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {
            "list": [
                {
                    "name": "Engine restarts",
                    "enable": True,
                    "iconColor": "red",
                    "datasource": _SOURCE,
                    "expr": _expression("changes(sluice_engine_restarts_total{$S}[1m]) > 0"),
                }
            ]
        },
        "links": [
            {
                "title": "Sluice",
                "type": "dashboards",
                "icon": "external link",
                "tooltip": "",
                "tags": ["sluice"],
                "asDropdown": False,
                "targetBlank": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": _panels(content["rows"]),
    }


def generate() -> dict[Path, str]:
    """The files and what they should hold."""
    tree = yaml.safe_load((HELM / "dashboards.yaml").read_text(encoding="utf-8"))
    return {
        TARGET / f"{name}.json": json.dumps(_dashboard(name, content), indent=2) + "\n"
        for name, content in tree.items()
    }


def quiet() -> dict[str, str]:
    """Titles of the panels that show nothing in quiet times, and why."""
    tree = yaml.safe_load((HELM / "dashboards.yaml").read_text(encoding="utf-8"))
    panels = [panel for content in tree.values() for row in content["rows"] for panel in row["panels"]]
    return {panel["title"]: panel["quiet"] for panel in panels if "quiet" in panel}


def main() -> None:
    for path, text in generate().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
