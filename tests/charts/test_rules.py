"""Alerts and dashboards: Prometheus reads them, every alert fires in a test, and every metric that they name exists."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from gateway.domain import Cause
from gateway.metrics import Metrics
from helm.dashboards import generate
from tests.charts.chart import CHART, find, render, scaling_triggers
from tests.charts.debian import program

# The first test may have to fetch a Debian package.
pytestmark = pytest.mark.timeout(600)

RULES = sorted(CHART.glob("files/rules/*.yaml"))
TESTS = sorted((Path(__file__).parent / "rules").glob("*.test.yaml"))
DASHBOARDS = sorted(CHART.glob("files/dashboards/*.json"))
RUNBOOKS = CHART.parents[1] / "deploy" / "runbooks.md"
KEDA = CHART / "ci" / "keda-values.yaml"
GATEWAY = Path(importlib.util.find_spec("gateway").origin or "").parent  # type: ignore[union-attr]


def _groups(path: Path) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    return groups


def _alerts() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in _groups(path) for rule in group["rules"] if "alert" in rule]


def _rule_queries() -> list[tuple[str, str]]:
    rules = [rule for path in RULES for group in _groups(path) for rule in group["rules"]]
    return [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules]


def _dashboard_queries() -> list[tuple[str, str]]:
    return [
        (f"{path.name}: {panel['title']}", target["expr"])
        for path in DASHBOARDS
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]


def _scaling_queries() -> list[tuple[str, str]]:
    triggers = find(render(KEDA), "ScaledObject")["spec"]["triggers"]
    return [(f"trigger {number}", trigger["metadata"]["query"]) for number, trigger in enumerate(triggers)]


def test_prometheus_takes_the_rules() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "rules", *map(str, RULES)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    for path in [*RULES, *TESTS]:
        shutil.copy(path, tmp_path)
    words = [program("promtool"), "test", "rules", *(path.name for path in TESTS)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_not_to() -> None:
    cases = [
        case
        for path in TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = {alert["alert"] for alert in _alerts()}

    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_dashboards_equal_their_source() -> None:
    assert generate() == {path: path.read_text(encoding="utf-8") for path in DASHBOARDS}


def test_every_alert_has_a_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE)

    assert headings == [alert["alert"] for alert in _alerts()]


def test_every_alert_has_a_severity_and_a_runbook() -> None:
    for alert in _alerts():
        assert alert["labels"]["severity"] in {"page", "ticket"}, alert["alert"]
        assert alert["annotations"]["runbook_url"] == f"runbooks.md#{alert['alert'].lower()}"
        assert alert["annotations"]["summary"]


def test_the_chart_delivers_the_rules_with_links_to_the_runbooks() -> None:
    values = {"metrics.prometheusRule.runbooks": "https://docs.example.org/sluice/runbooks.md"}
    delivered = find(render(KEDA, values=values), "PrometheusRule")["spec"]["groups"]
    wanted = [group for path in RULES for group in _groups(path)]
    for group in wanted:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["annotations"]["runbook_url"] = (
                    f"https://docs.example.org/sluice/{rule['annotations']['runbook_url']}"
                )

    assert delivered == wanted


@pytest.mark.parametrize(("ttft", "itl", "share"), [(0.1, 0.05, 0.999), (0.35, 0.1, 0.95), (2, 1, 0.99), (1, 2.5, 0.9)])
def test_the_chart_puts_the_objectives_in(ttft: float, itl: float, share: float, tmp_path: Path) -> None:
    slo = {"ttftSeconds": ttft, "itlSeconds": itl, "share": share}
    values = {f"metrics.prometheusRule.slo.{name}": value for name, value in slo.items()}
    groups = find(render(KEDA, values=values), "PrometheusRule")["spec"]["groups"]
    rules = {rule.get("alert") or rule["record"]: rule for group in groups for rule in group["rules"]}
    ours = {name: rule for name, rule in rules.items() if re.search("ttft|itl|slow|Burns", name)}

    # Each place of each number, found in another way than the chart's.
    for name, rule in ours.items():
        of_first = "ttft" in name or "FirstToken" in name
        for bound in re.findall(r'le=~"(.+?)\(\[', rule["expr"]):
            assert float(bound.replace("[.]", ".")) == (ttft if of_first else itl), name
        for objective in re.findall(r"vector\(([0-9.]+)\)", rule["expr"]):
            assert float(objective) == (ttft if of_first else itl), name
        for budget in re.findall(r"[*] ([0-9.]+)", rule["expr"]):
            assert float(budget) == pytest.approx(1 - share), name
        if "Burns" in name:
            (promised,) = re.findall(r"than ([0-9.]+) s ", rule["annotations"]["summary"])
            assert float(promised) == (ttft if of_first else itl), name
    text = yaml.safe_dump(groups)
    assert len(ours) == 3 + 1 + 8 + 4
    assert (text.count("le=~"), text.count("vector(")) == (8, 3)

    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_delivers_the_dashboards() -> None:
    delivered = {
        key: json.loads(text)
        for one in render(KEDA)
        if one["kind"] == "ConfigMap" and "-dashboard-" in one["metadata"]["name"]
        for key, text in one["data"].items()
    }

    assert delivered == {path.name: json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS}
    # A ConfigMap holds a mebibyte.
    assert all(path.stat().st_size < 900_000 for path in DASHBOARDS)


def _known_metrics() -> set[str]:
    """What the gateway and vLLM have, by the names that Prometheus sees."""
    registry = CollectorRegistry()
    metrics = Metrics("0", registry)
    metrics.served("chat", "completed", 1.0)
    metrics.rejected("queue_full")
    metrics.resumed("caught_up")
    metrics.used("anna", Cause.COMPLETED, 1, 1)
    names = {sample.name for family in registry.collect() for sample in family.samples}
    for path in GATEWAY.rglob("*.py"):
        names |= {
            f"sluice_{name}" for name in re.findall(r'metrics\.add_gauge\(\s*"(\w+)"', path.read_text(encoding="utf-8"))
        }
    return names


@pytest.mark.parametrize("source", ["rules", "dashboards", "scaling"])
def test_every_metric_exists(source: str) -> None:
    """A query for a name that no process exposes never returns a series."""
    queries = {"rules": _rule_queries, "dashboards": _dashboard_queries, "scaling": _scaling_queries}[source]()
    known = _known_metrics()
    vllm = Path(next(iter(importlib.util.find_spec("vllm").submodule_search_locations)))  # type: ignore[union-attr,arg-type]
    loggers = (vllm / "v1" / "metrics" / "loggers.py").read_text(encoding="utf-8")

    assert queries
    for where, query in queries:
        for name in re.findall(r"(?<![:\w])sluice_\w+(?=[{\[])", query):
            assert name in known, f"{where}: {name}"
        for name in re.findall(r"vllm:\w+", query):
            family = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert f'"{name}"' in loggers or f'"{family}"' in loggers, f"{where}: {name}"


def test_every_query_looks_at_sluice_alone() -> None:
    """Other servers in the cluster expose vllm:* and up, too."""
    for where, query in _dashboard_queries() + _rule_queries():
        for selector in re.findall(r"(?<![:\w])(?:sluice_\w+|vllm:\w+|up)(\{[^}]*\})", query):
            assert 'job="sluice"' in selector, where


def test_prometheus_takes_the_other_queries(tmp_path: Path) -> None:
    """promtool has no check for a query alone, so each becomes a rule."""
    rules = []
    for number, (_, query) in enumerate(_dashboard_queries() + _scaling_queries()):
        plain = query.replace("$__rate_interval", "5m")
        rules.append({"record": f"query:{number}", "expr": plain})
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout + done.stderr


SERIES = 'job="sluice",namespace="serving",app_kubernetes_io_instance="rel",sluice_model="a"'


@pytest.mark.parametrize("pods", [1, 2])
def test_each_scaling_query_gives_one_number(pods: int, tmp_path: Path) -> None:
    """KEDA takes more than one element for an error. What the numbers are, for one pod and for two."""
    triggers = scaling_triggers()
    # Per pod: 3 wait at the gate and 2 in an engine (vLLM's gauges count all five); 10 run; caches are 20 % and 40 %
    # full; a quarter is slow.
    series = []
    for pod in range(pods):
        of = f'{SERIES},instance="{pod}"'
        series += [
            (f"sluice_requests_waiting{{{of}}}", "3x30"),
            (f"sluice_streams_active{{{of}}}", "10x30"),
            *((f'vllm:num_requests_waiting{{{of},engine="{engine}"}}', f"{4 - 3 * engine}x30") for engine in (0, 1)),
            *((f'vllm:kv_cache_usage_perc{{{of},engine="{engine}"}}', f"0.{2 + 2 * engine}x30") for engine in (0, 1)),
            (f'sluice_time_to_first_token_seconds_bucket{{{of},le="2.0"}}', "0+75x30"),
            (f"sluice_time_to_first_token_seconds_count{{{of}}}", "0+100x30"),
        ]
    wanted = [5 * pods, 10 * pods, 0.3 * pods, 0.25 * pods]
    test = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": numbers} for name, numbers in series],
                "promql_expr_test": [
                    {
                        "expr": f"round(1000 * ({trigger['metadata']['query']}))",
                        "eval_time": "20m",
                        "exp_samples": [{"labels": "{}", "value": round(1000 * number)}],
                    }
                    for trigger, number in zip(triggers, wanted, strict=True)
                ],
            }
        ],
    }
    file = tmp_path / "scaling.test.yaml"
    file.write_text(yaml.safe_dump(test), encoding="utf-8")
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
