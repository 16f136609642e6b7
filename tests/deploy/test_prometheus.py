"""A real Prometheus scrapes real servers and answers every query of the dashboards, alerts and autoscalers.

The servers are scraped twice: one of them as namespace `one`, both as namespace `two`.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helm.dashboards import quiet
from tests.charts.chart import NAMESPACE, RELEASE, scaling_triggers
from tests.deploy import plot
from tests.deploy.panels import DASHBOARDS, Panel, Query, fill, panels
from tests.deploy.prometheus import EVERY_S, Prometheus, prometheus
from tests.deploy.proxies import DEPLOY
from tests.deploy.traffic import drive
from tests.support.server import Server, poll

# The first test may have to fetch a Debian package, and starts the servers.
pytestmark = pytest.mark.timeout(600)

RUNBOOKS = DEPLOY / "runbooks.md"
# What Prometheus calls the model and the release, in deploy/prometheus/prometheus.yml.
MODEL, INSTALLED_AS = "default", "sluice"

# Longer than the traffic takes.
LOOK_BACK_S = 150
# What the traffic does not do: a process stays, and no first token takes 2 s.
NOUGHT = {
    ("Replicas that do not answer", "{{sluice_model}}"),
    ("Process restarts", "{{instance}}"),
    ("Error budget burn", "{{sluice_model}} first token"),
}
_GONE = {"disconnected", "cancelled", "deadline_exceeded", "client_stalled"}
HAPPENED = {
    "Refused by admission": {"queue_full"},
    "Refused by replicas that do not serve": {"refused_unready"},
    "How generating requests end": {"completed", "overloaded", *_GONE},
    "Wasted tokens a second": _GONE,
    "Streams in flight at an engine's death": {"continued"},
    "Resumes": {"ok"},
    "Continued after an engine's death": {"continued"},
    "Readers that left or were dropped": _GONE,
}
"""Series by panel that must not be nought, by their legend."""


@pytest.fixture(scope="module")
def watcher(pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, before anything was asked of the servers."""
    first, second = pair
    groups = {"one": [first.port], "two": [first.port, second.port]}
    with prometheus(tmp_path_factory.mktemp("prometheus"), groups) as one:
        poll("everything was looked at", lambda: all(target["health"] == "up" for target in one.targets()), 20, 0.2)
        # A rate needs two looks, and a rule that looks at a rule a third.
        seen = "min(count_over_time(up{job='sluice'}[1m]))"
        poll("there are rates", lambda: (found := one.query(seen)) and float(found[0]["value"][1]) >= 4, 20, 0.2)
        yield one


@pytest.fixture(scope="module")
def silent(watcher: Prometheus) -> set[str]:
    """Panels of which a query gives nothing while nothing happens."""
    return {panel.title for panel in panels("two") if not all(watcher.query(one.expression) for one in panel.queries)}


@pytest.fixture(scope="module")
def busy(silent: set[str], watcher: Prometheus, pair: tuple[Server, Server]) -> Prometheus:
    """The same after traffic of every kind, an engine's death included."""
    drive(pair)
    time.sleep(2)
    return watcher


def test_panels_that_are_empty_without_traffic_are_marked_so(silent: set[str]) -> None:
    assert silent == set(quiet())


@pytest.mark.parametrize("panel", panels("two"), ids=lambda panel: f"{panel.dashboard}: {panel.title}")
def test_every_panel_shows_something(panel: Panel, busy: Prometheus) -> None:
    for query in panel.queries:
        found = busy.query(query.expression)
        assert found, query.expression
        assert any(one["value"][1] != "NaN" for one in found), query.expression
        for label in re.findall(r"{{(\w+)}}", query.legend):
            assert all(label in one["metric"] for one in found), f"{query.legend}: {found[0]['metric']}"


def _highest(query: Query, busy: Prometheus) -> dict[str, float]:
    """By legend, the highest value since the traffic began."""
    now_s = time.time()
    found: dict[str, float] = {}
    for one in busy.query_range(query.expression, now_s - LOOK_BACK_S, now_s, EVERY_S):
        values = [float(value) for _, value in one["values"] if math.isfinite(float(value))]
        name = plot.legend(query.legend, one["metric"])
        found[name] = max([found.get(name, 0.0), *values])
    return found


@pytest.mark.parametrize("panel", panels("two"), ids=lambda panel: f"{panel.dashboard}: {panel.title}")
def test_each_panel_shows_the_events_that_were_caused(panel: Panel, busy: Prometheus) -> None:
    """Otherwise a query whose series are always zero would go unnoticed."""
    for query in panel.queries:
        if (panel.title, query.legend) in NOUGHT:
            continue
        shown = {name for name, value in _highest(query, busy).items() if value > 0}
        assert shown, f"{query.expression} was nought all the time"
        assert shown >= HAPPENED.get(panel.title, set()), query.expression


def test_panels_separate_namespaces(busy: Prometheus) -> None:
    replicas = next(panel for panel in panels("one") if panel.title == "Replicas that answer").queries[0].expression

    assert busy.query(replicas)[0]["value"][1] == "1"
    assert busy.query(replicas.replace("one", "two"))[0]["value"][1] == "2"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_variables_and_marks_find_something(path: Path, busy: Prometheus) -> None:
    tree = json.loads(path.read_text(encoding="utf-8"))
    wanted = {"namespace": ["one", "two"], "release": [INSTALLED_AS], "model": [MODEL]}
    for variable in tree["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert match is not None
            series, label = fill(match[1], ".*"), match[2]
            assert busy.get(f"label/{label}/values", **{"match[]": series}) == wanted[variable["name"]]
    for mark in tree["annotations"]["list"]:
        series = fill(mark["expr"], "two")
        assert busy.query_range(series, time.time() - 120, time.time(), 1), "the engine's death is not marked"


def test_every_rule_is_evaluated_without_an_error(busy: Prometheus) -> None:
    rules = busy.rules()

    assert len(rules) > 20
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


def test_the_engines_death_is_an_alert_and_nothing_else_is(busy: Prometheus) -> None:
    firing = busy.query('ALERTS{alertstate="firing"}')

    # The server whose engine died is in one of the two groups only.
    assert [(one["metric"]["alertname"], one["metric"]["namespace"]) for one in firing] == [
        ("SluiceEngineRestarted", "two")
    ]


def _scaling_queries(namespace: str) -> list[str]:
    found = []
    for trigger in scaling_triggers():
        query = trigger["metadata"]["query"]
        for label, theirs, ours in (
            ("namespace", NAMESPACE, namespace),
            ("app_kubernetes_io_instance", RELEASE, INSTALLED_AS),
            ("sluice_model", "a", MODEL),
        ):
            assert f'{label}="{theirs}"' in query
            query = query.replace(f'{label}="{theirs}"', f'{label}="{ours}"')
        found.append(query)
    return found


@pytest.mark.parametrize("namespace", ["one", "two"])
@pytest.mark.parametrize("number", range(4), ids=["waiting", "running", "cache", "slow"])
def test_each_scaling_query_gives_one_number(namespace: str, number: int, busy: Prometheus) -> None:
    queries = _scaling_queries(namespace)
    assert len(queries) == 4
    found = busy.query(queries[number])

    assert len(found) == 1
    assert float(found[0]["value"][1]) >= 0


@pytest.mark.parametrize("number", range(4), ids=["waiting", "running", "cache", "slow"])
def test_no_server_is_no_number(number: int, busy: Prometheus) -> None:
    """KEDA shall hold what there is, instead of taking nothing for zero."""
    assert busy.query(_scaling_queries("elsewhere")[number]) == []


def _runbooks() -> list[str]:
    return re.findall(r"^```promql\n(.+?)\n```$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_query_of_the_runbooks_is_answered(busy: Prometheus) -> None:
    names = set(busy.get("label/__name__/values"))
    # There is no kube-state-metrics here.
    ours = re.compile(r"\b(?:sluice|vllm|process)[_:][a-z_:0-9]+")
    texts = _runbooks()
    # One in each section, and one above them all.
    assert len(texts) == RUNBOOKS.read_text(encoding="utf-8").count("\n## ") + 1
    for text in texts:
        expression = text.replace("$MODEL", MODEL).replace("$RELEASE", INSTALLED_AS)
        assert "$" not in expression
        assert set(ours.findall(expression)) - {"sluice_model"} <= names, text
        # By its answer a matcher that finds nothing differs from a healthy server only where there is no condition.
        if "kube_" not in text and not re.search("==|>|unless|6h", text):
            assert busy.query(expression), text
        else:
            busy.query(expression)


def test_dashboards_can_be_looked_at(busy: Prometheus, tmp_path: Path) -> None:
    """The page that shows all panels without Grafana; `python -m tests.deploy.plot` makes it from any Prometheus."""
    for path in DASHBOARDS:
        page = plot.page(path.stem, panels("two"), busy, seconds=60)
        (tmp_path / f"{path.stem}.html").write_text(page, encoding="utf-8")
        print(f"drawn: {tmp_path}/{path.stem}.html")
        assert page.count("<polyline") >= 10
        assert "nothing to show" not in page
