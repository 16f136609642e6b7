"""The notes of `helm install`. Helm needs a cluster to show notes, so here they become an object."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.charts.chart import CHART, find, render, scenarios

DEMO = {"models.a.source.type": "demo", "models.a.gpu.count": 0}
HUB = {"models.a.source.repository": "Qwen/Qwen3-8B"}


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("notes") / "sluice"
    shutil.copytree(CHART, copy)
    notes = copy / "templates" / "NOTES.txt"
    (copy / "templates" / "_notes.tpl").write_text(
        '{{ define "notes" }}' + notes.read_text(encoding="utf-8") + "{{ end }}", encoding="utf-8"
    )
    notes.unlink()
    (copy / "templates" / "notes.yaml").write_text(
        'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {text: {{ include "notes" . | toJson }}}\n',
        encoding="utf-8",
    )
    return copy


def _notes(chart: Path, *files: Path, values: dict[str, Any] | None = None, kubernetes: str = "1.34") -> str:
    objects = render(*files, values=values, kubernetes=kubernetes, chart=chart)
    text: str = find(objects, "ConfigMap", "notes")["data"]["text"]
    return text


def test_notes_list_what_is_in_force(chart: Path) -> None:
    values = DEMO | {"models.a.drain.timeoutSeconds": 45, "models.a.probes.liveness.failureThreshold": 12}
    page = _notes(chart, values=values)

    for words in (
        "http://rel-a.serving.svc:8000/v1",
        "15 s still accepting, 45 s for running requests, killed after 75 s",
        "up to 1800 s to load; liveness restarts it after 120 s, readiness removes it after 6 s",
        "surge 0, unavailable 1, fails after 1945 s",
        "256 at once, 512 waiting, each up to 60 s",
        "none: any client that reaches it may use it",
        "With one replica and no surge",
        "There is no NetworkPolicy",
        "helm test rel --namespace serving",
    ):
        assert words in page


def test_notes_explain_scaling(chart: Path) -> None:
    page = _notes(chart, values=DEMO | {"models.a.autoscaling.enabled": True, "models.a.apiKeys.existingSecret": "keys",
                                        "tests.enabled": False})  # fmt: skip

    assert "1 to 4 (keda): per replica 2 waiting, 204 running" in page
    assert "Secret keys" in page
    assert "helm test" not in page


@pytest.mark.parametrize(
    ("values", "kubernetes", "words"),
    [
        (HUB, "1.34", "source.revision is not set"),
        (DEMO | {"metrics.prometheusRule.enabled": True}, "1.34", "links are not valid"),
        (DEMO | {"metrics.prometheusRule.enabled": True}, "1.34", "99 % of first tokens within 2 s"),
        (DEMO | {"models.a.drain.timeoutSeconds": 900}, "1.34", "The cluster autoscaler ends pods after 600 s"),
        ({"models.a.source": {"type": "image", "oci": {"reference": "m:1"}}}, "1.34", "feature gate ImageVolume"),
        ({"models.a": {"multiNode": {"enabled": True}} | {"source": {"repository": "x"}}}, "1.34", "each of 2 pods"),
    ],
)
def test_notes_warn_of_risky_values(chart: Path, values: dict[str, Any], kubernetes: str, words: str) -> None:
    assert words in _notes(chart, values=values, kubernetes=kubernetes)
    assert words not in _notes(chart, values=DEMO, kubernetes=kubernetes)


@pytest.mark.parametrize("path", scenarios(), ids=lambda path: path.stem)
def test_notes_of_every_scenario(chart: Path, path: Path) -> None:
    page = _notes(chart, path)

    assert "<no value>" not in page
    assert "%!" not in page
