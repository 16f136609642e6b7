"""The values: each one does something, its description is where it is looked for, and the schema accepts no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics
from helm import generate
from tests.charts.chart import CHART, NEWEST, refusal, render, text
from tests.charts.strict import problems

PLAN = yaml.safe_load((Path(__file__).parent / "changes.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


def test_schema_and_table_are_current() -> None:
    for path, wanted in generate.generate().items():
        assert path.read_text(encoding="utf-8") == wanted, f"{path.name}: run `python helm/generate.py`"


@pytest.mark.parametrize("path", PLAN["changes"])
def test_every_value_does_something(path: str) -> None:
    case = PLAN["changes"][path]
    extra = case.get("with", {})
    base = PLAN["base"] | (PLAN["groups"][extra] if isinstance(extra, str) else extra)
    before = text(values=base)
    if "refused" in case:
        assert path.split(".")[-2] in refusal(values=base | {path: case["refused"]})
        return
    # A map that is set whole must not wipe out the base's.
    change = {f"{path}.{key}": value for key, value in case["to"].items()} if path == "models" else {path: case["to"]}

    assert text(values=base | change) != before


def _plain_text(path: str) -> bool:
    """Whether any string may be set there."""
    node = {"properties": SCHEMA["properties"] | {"modelDefaults": SCHEMA["definitions"]["model"]}}
    for key in path.split("."):
        node = node.get("properties", {}).get(key, {})
    return node.get("type") == "string" and not node.keys() & {"enum", "pattern"}


# As names these would not do, or they are whole documents.
NOT_NUMBERS = {
    "fullnameOverride",
    "modelDefaults.inferencePool.endpointPicker.config",
    "loadTest.scenarioYaml",
    "loadTest.model",
}


@pytest.mark.parametrize("path", [path for path in PLAN["changes"] if _plain_text(path) and path not in NOT_NUMBERS])
def test_texts_stay_texts(path: str) -> None:
    """A Secret may be called 1e3, a folder {a}: unquoted, YAML would make something else of them."""
    extra = PLAN["changes"][path].get("with", {})
    base = PLAN["base"] | (PLAN["groups"][extra] if isinstance(extra, str) else extra)

    for words in ("1e3", "yes"):
        objects = render(values=base | {path: words})
        assert [problem for one in objects for problem in problems(one, NEWEST)] == []


def test_every_value_is_tried() -> None:
    texts = generate.descriptions((CHART / "values.yaml").read_text(encoding="utf-8"))

    assert set(PLAN["changes"]) == set(texts)


def test_the_schema_is_closed_and_described() -> None:
    def walk(node: Any, path: str) -> None:
        if not isinstance(node, dict):
            return
        if "properties" in node:
            assert node.get("additionalProperties") is not None, path
        for key, inner in node.get("properties", {}).items():
            assert "properties" in inner or inner.get("description"), f"{path}.{key} is not described"
            walk(inner, f"{path}.{key}")

    walk(SCHEMA, "")
    walk(SCHEMA["definitions"]["model"], "models.*")
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_times_of_scaling_and_objectives_are_buckets() -> None:
    """Between buckets there is nothing to count."""
    registry = CollectorRegistry()
    Metrics("0", registry)

    def bounds(name: str) -> set[float]:
        samples = next(m for m in registry.collect() if m.name == name).samples
        return {float(one.labels["le"]) for one in samples if "le" in one.labels} - {float("inf")}

    targets = SCHEMA["definitions"]["model"]["properties"]["autoscaling"]["properties"]["targets"]["properties"]
    rule = SCHEMA["properties"]["metrics"]["properties"]["prometheusRule"]["properties"]
    slo = rule["slo"]["properties"]

    assert set(targets["slowSeconds"]["enum"]) == bounds("sluice_time_to_first_token_seconds")
    assert set(slo["ttftSeconds"]["enum"]) == bounds("sluice_time_to_first_token_seconds")
    assert set(slo["itlSeconds"]["enum"]) == bounds("sluice_inter_token_latency_seconds")


def test_large_numbers_stay_whole() -> None:
    """Helm reads all numbers as floats and would write 1.6777216e+07."""
    values = PLAN["base"] | {
        "modelDefaults.settings.server.max_body_bytes": 16777216,
        "modelDefaults.engine.max_model_len": 1048576,
        "modelDefaults.service.port": 8443,
        "modelDefaults.ingress.enabled": True,
        "modelDefaults.ingress.host": "a.example.com",
        "loadTest.enabled": True,
        "loadTest.ttlSecondsAfterFinished": 10000000,
    }
    rendered = text(values=values)

    assert "e+0" not in rendered
    for number in ("max_body_bytes: 16777216", "max_model_len: 1048576", 'proxy-body-size: "16777216"', ": 10000000"):
        assert number in rendered


def test_layers_add_up() -> None:
    """Later files change and add single values of models, and `enabled: false` takes one out."""
    rendered = text(
        CHART / "values-prod.yaml", values={"models.qwen3-8b.enabled": False, "models.llama-70b.replicas": 2}
    )

    assert "rel-qwen3-8b" not in rendered
    assert "tensor_parallel_size: 4" in rendered


def test_the_cpu_image_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    cpu = yaml.safe_load((CHART / "values-cpu.yaml").read_text(encoding="utf-8"))

    assert cpu["modelDefaults"]["image"]["tag"] == f"{chart['appVersion']}-cpu"
