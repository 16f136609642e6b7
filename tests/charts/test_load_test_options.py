"""Options of the chart's load test."""

from __future__ import annotations

from tests.charts.chart import find, render
from tests.charts.test_options import DEMO, env_of, scenario


def test_the_load_test_is_given_its_key() -> None:
    container = find(scenario("loadtest"), "Job")["spec"]["template"]["spec"]["containers"][0]

    assert container["command"] == ["sluice-load", "run", "chat", "--url", "http://rel-demo.serving.svc:8000", "--out", "/results"]  # fmt: skip # noqa: E501
    (metrics,) = (
        one["metadata"]["name"] for one in scenario("loadtest") if one["metadata"]["name"].endswith("-metrics")
    )
    metrics_url = f"http://{metrics}.serving.svc:8001"
    assert container["args"] == ["--api-key", "$(API_KEY)", "--metrics-url", metrics_url, "--rate", "5"]
    assert env_of(container)["API_KEY"] == {"secretKeyRef": {"name": "load", "key": "token"}}


def test_a_load_test_waits_for_the_server_unless_it_is_elsewhere() -> None:
    waits = find(scenario("loadtest"), "Job")["spec"]["template"]["spec"]["initContainers"]
    # As long as one pod may drain and the next load.
    assert waits[0]["command"][3:] == ["http://rel-demo.serving.svc:8000", "2430"]

    values = DEMO | {"loadTest.enabled": True, "loadTest.url": "https://models.example.com"}
    assert "initContainers" not in find(render(values=values), "Job")["spec"]["template"]["spec"]


def test_load_test_workers_find_their_master() -> None:
    objects = scenario("loadtest-workers")
    jobs = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Job"}
    master, workers = sorted(jobs, key=len)
    service = find(objects, "Service", master)
    commands = [jobs[name]["spec"]["template"]["spec"]["containers"][0]["command"] for name in (master, workers)]

    assert commands[1][commands[1].index("--master-host") + 1] == service["metadata"]["name"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert commands[0][commands[0].index("--expect-workers") + 1] == "4"
    assert jobs[workers]["spec"]["parallelism"] == jobs[workers]["spec"]["completions"] == 4
    for command in commands:
        assert command[command.index("--host") + 1] == "http://rel-other.serving.svc:8000"
