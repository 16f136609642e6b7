"""Grafana accepts the dashboards: checked with Grafana's own types, and by rules that those do not have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog import encoder
from grafana_foundation_sdk.models import dashboard as types
from grafana_foundation_sdk.models import stat, timeseries

from tests.deploy.panels import DASHBOARDS

# Grafana's names of units that the dashboards use.
UNITS = {"short", "none", "s", "bytes", "percentunit", "reqps"}


def _tree(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree


def _lost(before: Any, after: Any, where: str = "") -> list[str]:
    """What is in `before` and not in `after`, or is another thing there."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            one
            for key, value in before.items()
            for one in (_lost(value, after[key], f"{where}.{key}") if key in after else [f"{where}.{key}"])
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [one for number, (old, new) in pairs for one in _lost(old, new, f"{where}[{number}]")]
    return [] if before == after else [where]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_key_is_in_grafanas_types(path: Path) -> None:
    """Read into Grafana's own types and written again: a field that they do not have is lost on the way."""
    models = {"stat": stat, "timeseries": timeseries}

    def again(value: Any) -> Any:
        return json.loads(encoder.JSONEncoder().encode(value))

    tree = _tree(path)
    assert _lost(tree, again(types.Dashboard.from_json(tree))) == []
    for panel in tree["panels"]:
        if panel["type"] != "row":
            model = models[panel["type"]]
            assert _lost(panel["options"], again(model.Options.from_json(panel["options"]))) == [], panel["title"]
            if custom := panel["fieldConfig"]["defaults"].get("custom"):
                assert _lost(custom, again(model.FieldConfig.from_json(custom))) == [], panel["title"]
    spoilt = tree | {"refersh": "30s"}
    assert _lost(spoilt, again(types.Dashboard.from_json(spoilt))) == [".refersh"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_places_of_their_own(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    panels = _tree(path)["panels"]
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells

    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_titles_units_and_texts(path: Path) -> None:
    tree = _tree(path)
    names = {variable["name"] for variable in tree["templating"]["list"]} | {"__rate_interval"}
    for panel in tree["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= names


def test_dashboards_have_ids_and_names_of_their_own() -> None:
    trees = [_tree(path) for path in DASHBOARDS]

    assert [tree["uid"] for tree in trees] == [f"sluice-{path.stem}" for path in DASHBOARDS]
    assert len({tree["title"] for tree in trees}) == len(trees)
