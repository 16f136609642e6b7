"""Every scenario renders for every Kubernetes that it is for, into objects that Kubernetes would take."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.charts.chart import (
    CHART,
    HELM,
    NEWEST,
    VERSIONS,
    command,
    name_of,
    oldest,
    parse,
    refusal,
    render,
    run,
    scenarios,
    text,
    versions,
)
from tests.charts.strict import kinds, problems

CASES = [(path, version) for path in scenarios() for version in versions(path)]

# Switches that are laid over every scenario in the full run, alone and in pairs.
TOGGLES: dict[str, dict[str, Any]] = {
    "monitoring": {"metrics.podMonitor.enabled": True, "metrics.prometheusRule.enabled": True},
    "policy": {
        "networkPolicy.enabled": True,
        "networkPolicy.clients": [{"podSelector": {}}],
        "networkPolicy.monitoring": [{"podSelector": {}}],
    },
    "scaled": {"modelDefaults.autoscaling.enabled": True},
    "scaled by hpa": {"modelDefaults.autoscaling.enabled": True, "modelDefaults.autoscaling.type": "hpa"},
    "keys": {"modelDefaults.apiKeys.existingSecret": "keys", "tests.apiKey.existingSecret": "test"},
    "no tests": {"tests.enabled": False},
    "long drain": {"modelDefaults.drain.timeoutSeconds": 3600, "modelDefaults.terminationGracePeriodSeconds": None},
    "own account": {"serviceAccount.create": False, "serviceAccount.name": "theirs"},
    "labels": {"commonLabels": {"team": "a"}, "modelDefaults.podLabels": {"b": "c"}},
    "exposed": {
        "modelDefaults.route.enabled": True,
        "modelDefaults.route.parentRefs": [{"name": "public"}],
    },
}


def _ids(case: tuple[Path, str]) -> str:
    return f"{case[0].stem.removesuffix('-values').removeprefix('values-')}-{case[1]}"


@pytest.mark.parametrize("case", CASES, ids=_ids)
def test_kubernetes_would_take_it(case: tuple[Path, str], stats: Counter[str]) -> None:
    path, version = case
    objects = render(path, kubernetes=version)
    stats.update(one["kind"] for one in objects)
    stats["renders"] += 1

    assert [problem for one in objects for problem in problems(one, version)] == []
    names = [(one["apiVersion"], name_of(one)) for one in objects]
    assert len(names) == len(set(names)), "two objects of one name"


@pytest.mark.parametrize("path", scenarios(), ids=lambda path: path.stem)
def test_helm_lint_reports_nothing(path: Path) -> None:
    words = [str(HELM), "lint", "--strict", "--quiet", str(CHART), "-f", str(path), "--kube-version", f"{NEWEST}.0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("full_size")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", scenarios(), ids=lambda path: path.stem)
@pytest.mark.parametrize("version", VERSIONS)
def test_switches_in_pairs(path: Path, version: str, stats: Counter[str]) -> None:
    """What is refused is refused with our sentence; everything else is valid."""
    if version not in versions(path):
        pytest.skip(f"for Kubernetes {oldest(path)} and newer")
    for names in itertools.chain(((one,) for one in TOGGLES), itertools.combinations(TOGGLES, 2)):
        values = {key: value for name in names for key, value in TOGGLES[name].items()}
        code, rendered, errors = run(path, values=values, kubernetes=version)
        if code != 0:
            assert re.search(r"execution error at .*: (models|networkPolicy)[.].*\. \w", errors), (names, errors)
            stats["refusals"] += 1
            continue
        objects = parse(rendered)
        stats["renders"] += 1
        stats.update(one["kind"] for one in objects)
        assert [problem for one in objects for problem in problems(one, version)] == [], names


def test_the_scenarios_make_every_kind() -> None:
    """A kind that no scenario makes would never be looked at."""
    made = {one["kind"] for path in scenarios() for one in render(path)}
    written = set()
    for path in CHART.glob("templates/**/*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("kind: "):
                written.add(line.removeprefix("kind: "))

    assert made == written
    assert kinds() <= made


def test_rendering_twice_gives_the_same() -> None:
    """Else tools that compare renders would roll everything out for nothing."""
    path = CHART / "values-prod.yaml"
    again = subprocess.run(command(path), capture_output=True, text=True, check=True).stdout

    assert text(path) == again


def test_old_kubernetes_is_refused() -> None:
    assert "chart requires kubeVersion: >=1.29.0-0" in refusal(CHART / "values-cpu.yaml", kubernetes="1.28")
