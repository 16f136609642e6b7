from __future__ import annotations

import json
from time import perf_counter_ns, time
from typing import Any

import pytest

from loadtest.runner.run_plan import WorkerPlan, api_keys, to_perf_counter_ns
from loadtest.scenario.loader import LoadedScenario, ScenarioError, parse
from loadtest.scenario.workload import ServerInfo

DOCUMENT: dict[str, Any] = {"name": "x", "load": {"kind": "poisson", "rate": 1}, "workloads": [{"name": "w"}]}


def test_a_plan_survives_the_message_to_a_worker() -> None:
    server_info = ServerInfo("m", is_vllm=True, tokens_per_word=1.5, context=2048)
    plan = WorkerPlan(DOCUMENT, server_info, "http://x", {"a": "k"}, time() + 1, 2, 3, None)

    assert WorkerPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_share_begins_on_the_clock_of_its_process() -> None:
    share = WorkerPlan(DOCUMENT, ServerInfo("m"), "http://x", {}, time() + 1, 2, 3, None).share()

    assert (share.index, share.count) == (2, 3)
    assert share.began_ns - perf_counter_ns() == pytest.approx(1e9, abs=5e7)


def test_the_wall_clock_is_converted() -> None:
    assert to_perf_counter_ns(time()) == pytest.approx(perf_counter_ns(), abs=5e7)


def loaded(*tenants: dict[str, str]) -> LoadedScenario:
    document = {**DOCUMENT, "tenants": list(tenants)}
    return LoadedScenario(parse(document, "here"), document)


def test_keys_come_from_the_scenario_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_B", "kb")

    keys = api_keys(loaded({"name": "a", "key": "ka"}, {"name": "b", "key_env": "KEY_OF_B"}, {"name": "c"}))
    assert keys == {"a": "ka", "b": "kb"}


def test_a_missing_variable_is_named() -> None:
    with pytest.raises(ScenarioError, match=r"tenants\[0\].key_env: the environment variable NOT_SET is not set"):
        api_keys(loaded({"name": "a", "key_env": "NOT_SET"}))
