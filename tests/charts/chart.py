"""Rendering the chart: values in, objects out. A render takes 0.1 s and is kept, since many tests look at the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "sluice"
# The tool comes with the Python package helm-binary, beside the interpreter.
HELM = Path(sys.executable).with_name("helm")
RELEASE, NAMESPACE = "rel", "serving"
OLDEST, NEWEST = "1.29", "1.37"
VERSIONS = (OLDEST, "1.31", "1.33", "1.34", NEWEST)

Object = dict[str, Any]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes no key twice. YAML does, and Kubernetes would see the last alone."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice in one map: {keys}"
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def scenarios() -> list[Path]:
    """The values files that are shipped, and those of `ci/`, which together use every template."""
    return sorted(CHART.glob("values-*.yaml")) + sorted(CHART.glob("ci/*-values.yaml"))


def oldest(scenario: Path) -> str:
    """The oldest Kubernetes that a scenario is for: its first line, or the chart's."""
    match = re.match(r"# kubernetes: ([0-9.]+)\n", scenario.read_text(encoding="utf-8"))
    return match[1] if match else OLDEST


def versions(scenario: Path) -> list[str]:
    return [version for version in VERSIONS if _number(version) >= _number(oldest(scenario))]


def _number(version: str) -> int:
    return int(version.split(".")[1])


def command(*files: Path, values: Object | None = None, kubernetes: str = NEWEST, chart: Path = CHART) -> list[str]:
    words = [str(HELM), "template", RELEASE, str(chart), "--namespace", NAMESPACE]
    words += ["--kube-version", f"{kubernetes}.0"]
    for file in files:
        words += ["--values", str(file)]
    for key, value in (values or {}).items():
        words += ["--set-json", f"{key}={json.dumps(value)}"]
    return words


@lru_cache(maxsize=2000)
def _run(words: tuple[str, ...]) -> tuple[int, str, str]:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def run(
    *files: Path, values: Object | None = None, kubernetes: str = NEWEST, chart: Path = CHART
) -> tuple[int, str, str]:
    """Helm's exit code, output and errors."""
    return _run(tuple(command(*files, values=values, kubernetes=kubernetes, chart=chart)))


def text(*files: Path, values: Object | None = None, kubernetes: str = NEWEST, chart: Path = CHART) -> str:
    """What Helm would send to Kubernetes."""
    code, out, error = run(*files, values=values, kubernetes=kubernetes, chart=chart)
    assert code == 0, error
    return out


def refusal(*files: Path, values: Object | None = None, kubernetes: str = NEWEST) -> str:
    """Helm's message if it refuses."""
    code, _, error = run(*files, values=values, kubernetes=kubernetes)
    assert code != 0, "the chart was rendered"
    return error


@lru_cache(maxsize=2000)
def parse(rendered: str) -> list[Object]:
    """Documents of YAML."""
    return [one for one in yaml.load_all(rendered, Loader=_Loader) if one is not None]


def render(*files: Path, values: Object | None = None, kubernetes: str = NEWEST, chart: Path = CHART) -> list[Object]:
    """The same as objects. They are shared between tests: do not change them."""
    return parse(text(*files, values=values, kubernetes=kubernetes, chart=chart))


def find(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of a kind (and name)."""
    found = [one for one in objects if one["kind"] == kind and name in {None, one["metadata"]["name"]}]
    assert len(found) == 1, [f"{one['kind']}/{one['metadata']['name']}" for one in objects]
    return found[0]


def scaling_triggers() -> list[Object]:
    """The triggers of an autoscaled model `a` with every target that there is."""
    values = {
        "models.a.source.type": "demo",
        "models.a.gpu.count": 0,
        "models.a.autoscaling.enabled": True,
        "models.a.autoscaling.targets.slowShare": 0.1,
    }
    triggers: list[Object] = find(render(values=values), "ScaledObject")["spec"]["triggers"]
    return triggers


def pod_templates(one: Object) -> list[Object]:
    """The pods that an object makes or is: each with metadata and spec."""
    match one["kind"]:
        case "Pod":
            return [one]
        case "Deployment" | "Job":
            return [one["spec"]["template"]]
        case "LeaderWorkerSet":
            group = one["spec"]["leaderWorkerTemplate"]
            return [group["leaderTemplate"], group["workerTemplate"]]
        case _:
            return []


def pods(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Every pod with the object that makes it."""
    for one in objects:
        for pod in pod_templates(one):
            yield one, pod


def name_of(one: Object) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"
