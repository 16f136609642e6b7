"""The checks of rendered objects do find what is wrong: each is shown something broken."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.charts.chart import CHART, Object, find, render
from tests.charts.strict import kinds, problems


def _made(kind: str, name: str | None, scenario: str) -> Object:
    return copy.deepcopy(find(render(CHART / f"{scenario}.yaml"), kind, name))


OBJECTS = {
    "ScaledObject": ("ScaledObject", None, "ci/keda-values"),
    "HTTPRoute": ("HTTPRoute", "rel-picked", "ci/routes-values"),
    "InferencePool": ("InferencePool", "rel-picked", "ci/routes-values"),
    "LeaderWorkerSet": ("LeaderWorkerSet", "rel-spread", "ci/groups-values"),
    "PodMonitor": ("PodMonitor", None, "ci/keda-values"),
    "PrometheusRule": ("PrometheusRule", None, "ci/keda-values"),
    "Deployment": ("Deployment", None, "values-cpu"),
    "Service": ("Service", None, "values-cpu"),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_unknown_field_is_found(kind: str) -> None:
    one = _made(*OBJECTS[kind])
    assert problems(one, "1.34") == []
    one["spec"]["replicaz"] = 1

    assert "replicaz" in problems(one, "1.34")[0]


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_field_on_the_top_is_found(kind: str) -> None:
    one = _made(*OBJECTS[kind])
    one["specs"] = {}

    assert "specs" in problems(one, "1.34")[0]


def _in(one: Object, *path: str | int) -> Object:
    for step in path:
        one = one[step]  # type: ignore[index]
    return one


BROKEN: dict[str, tuple[str, Callable[[Object], None]]] = {
    "strategy inside the pod": (
        "Deployment",
        lambda one: _in(one, "spec", "template", "spec").update(strategy={"type": "Recreate"}),
    ),
    "word for a number": ("Deployment", lambda one: one["spec"].update(minReadySeconds="ten")),
    "number in KEDA's metadata": (
        "ScaledObject",
        lambda one: _in(one, "spec", "triggers", 0, "metadata").update(threshold=2),
    ),
    "KEDA's old metricName": (
        "ScaledObject",
        lambda one: _in(one, "spec", "triggers", 0, "metadata").update(metricName="x"),
    ),
    "pod of a group": (
        "LeaderWorkerSet",
        lambda one: _in(one, "spec", "leaderWorkerTemplate", "workerTemplate", "spec").update(containerz=[]),
    ),
    "route to a Service without its port": (
        "HTTPRoute",
        lambda one: _in(one, "spec", "rules", 0).update(backendRefs=[{"kind": "Service", "name": "x"}]),
    ),
    "rule that is alert and record": (
        "PrometheusRule",
        lambda one: _in(one, "spec", "groups", 0, "rules", 0).update(alert="Both", record="both"),
    ),
    "pool with an expression": (
        "InferencePool",
        lambda one: _in(one, "spec", "selector").update(matchExpressions=[]),
    ),
    "scrape of a misspelled port": (
        "PodMonitor",
        lambda one: _in(one, "spec", "podMetricsEndpoints", 0).update(targetport="http"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_objects_are_found(name: str) -> None:
    kind, breaks = BROKEN[name]
    one = _made(*OBJECTS[kind])
    breaks(one)

    assert problems(one, "1.34")


def test_an_unknown_kind_is_found() -> None:
    one = {"apiVersion": "example.com/v1", "kind": "Gadget", "metadata": {"name": "x"}}

    assert problems(one, "1.34") == ["Gadget/x: no schema for example.com/v1 Gadget (Kubernetes 1.34)"]


def test_fields_too_new_for_a_cluster_are_found() -> None:
    claim = _made("ResourceClaimTemplate", None, "ci/dra-values")

    assert problems(claim, "1.34") == []
    assert "no schema for resource.k8s.io/v1" in problems(claim, "1.33")[0]


def test_every_schema_of_ours_is_shown_something_broken() -> None:
    assert kinds() == {kind for kind, _ in BROKEN.values()} - {"Deployment"}
