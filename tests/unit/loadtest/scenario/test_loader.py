"""Scenarios: the built-in ones are valid, errors name the place and the fix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.scenario import loader
from loadtest.scenario.arrivals import ClosedLoop, Poisson, Ramp
from loadtest.scenario.loader import ScenarioError

BASE: dict[str, Any] = {
    "name": "base",
    "load": {"kind": "poisson", "rate": 2},
    "workloads": [
        {
            "name": "one",
            "prompt_tokens": {"kind": "uniform", "min": 1, "max": 9},
            "behaviours": [{"kind": "cancel", "share": 0.5, "after_s": 1}],
        }
    ],
    "slo": {"ttft_p99_ms": 100},
}
Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize("name", loader.builtin_names())
def test_builtin_scenarios_are_valid(name: str) -> None:
    loaded = loader.load(name)

    assert loaded.scenario.name == name
    assert loaded.scenario.slo.limits


def test_the_four_documented_scenarios_exist() -> None:
    assert set(loader.builtin_names()) == {"agent", "chat", "rag", "smoke"}


def test_smoke_takes_less_than_half_a_minute_without_its_drain() -> None:
    assert loader.load("smoke").scenario.stages.arrivals_s <= 30


WRONG: list[tuple[Change, str]] = [
    (lambda d: d.update(lod={}), "lod (x.yaml) is not a setting. Did you mean `load`?"),
    (lambda d: d.pop("load"), "load (x.yaml) is missing."),
    (lambda d: d["load"].update(rat=1), "load.rat (x.yaml) is not a setting. Did you mean `rate`?"),
    (lambda d: d["load"].update(rate=-1), "load.rate (x.yaml): -1: input should be greater than 0."),
    (lambda d: d["load"].update(kind="poison"), "load (x.yaml): input tag 'poison' found"),
    (lambda d: d["workloads"][0].update(promt=1), "workloads[0].promt (x.yaml) is not a setting. Did you mean `prompt`?"),  # noqa: E501
    (lambda d: d["workloads"][0]["prompt_tokens"].update(min=10), "workloads[0].prompt_tokens (x.yaml): min (10) is above"),  # noqa: E501
    (lambda d: d["workloads"][0]["prompt_tokens"].update(mx=10), "workloads[0].prompt_tokens.mx (x.yaml) is not a setting. Did you mean `max`?"),  # noqa: E501
    (lambda d: d["workloads"][0]["behaviours"][0].update(after_tokens=3), "workloads[0].behaviours[0] (x.yaml): set exactly one of"),  # noqa: E501
    (lambda d: d["workloads"][0]["behaviours"][0].update(shar=3), "workloads[0].behaviours[0].shar (x.yaml) is not a setting. Did you mean `share`?"),  # noqa: E501
    (lambda d: d["workloads"][0].update(stream=False), "behaviours are for streams"),
    (lambda d: d["workloads"][0].update(prompt="token_ids"), "prompt: token_ids needs endpoint: completions"),
    (lambda d: d["workloads"].append(d["workloads"][0]), "two workloads have the same name"),
    (lambda d: d.update(tenants=[{"name": "a", "key": "k", "key_env": "K"}]), "give key or key_env, not both"),
    (lambda d: d["slo"].update(ttft_p98_ms=1), "ttft_p98_ms is not a limit. Did you mean `ttft_p99_ms`?"),
    (lambda d: d["slo"].update(ttft_p99_ms=0), "ttft_p99_ms is 0; give milliseconds above 0"),
    (lambda d: d["slo"].update(preset="llama-3.1-8b"), "Did you mean `llama-3.1-8b/server`?"),
    (lambda d: d["slo"].update(per_request={"tttf_ms": 1}), "per_request.tttf_ms is not a limit. Did you mean `ttft_ms`?"),  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_an_error_names_the_field_the_place_and_the_fix(change: Change, message: str) -> None:
    document = copy.deepcopy(BASE)
    change(document)

    with pytest.raises(ScenarioError) as caught:
        loader.parse(document, "x.yaml")
    assert message in str(caught.value)


def scenario_file(folder: Path, **changes: Any) -> str:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({**BASE, **changes}))
    return str(file)


def test_overrides(tmp_path: Path) -> None:
    file = scenario_file(tmp_path)
    closed = loader.load(file, {"users": 7, "duration_s": 9, "seed": None}).scenario
    paced = loader.load(file, {"rate": 7, "model": "m"})

    assert isinstance(closed.load, ClosedLoop)
    assert (closed.load.users, closed.stages.measure_s, closed.seed) == (7, 9, 1)
    assert isinstance(paced.scenario.load, Poisson)
    assert (paced.scenario.load.rate, paced.scenario.model) == (7, "m")
    assert yaml.safe_load(paced.masked_yaml())["load"]["rate"] == 7, "the result shows what was run"


def test_a_rate_scales_a_shape(tmp_path: Path) -> None:
    file = scenario_file(tmp_path, load={"kind": "ramp", "start": 1, "end": 3})
    load = loader.load(file, {"rate": 4}).scenario.load

    assert isinstance(load, Ramp)
    assert (load.start, load.end) == (2, 6)


def test_a_rate_turns_a_closed_loop_into_an_open_one(tmp_path: Path) -> None:
    file = scenario_file(tmp_path, load={"kind": "closed", "users": 3})

    assert isinstance(loader.load(file, {"rate": 4}).scenario.load, Poisson)


def test_a_trace_is_found_beside_its_scenario_and_takes_no_rate(tmp_path: Path) -> None:
    file = scenario_file(tmp_path, load={"kind": "trace", "file": "t.csv", "format": "azure"})

    assert loader.load(file).document["load"]["file"] == str(tmp_path / "t.csv")
    with pytest.raises(ScenarioError, match="--rate: a trace has its own arrivals"):
        loader.load(file, {"rate": 4})


def test_keys_are_masked(tmp_path: Path) -> None:
    loaded = loader.load(scenario_file(tmp_path), {"api_key": "sk-secret"})

    assert loaded.scenario.tenants[0].key == "sk-secret"
    assert "sk-secret" not in loaded.masked_yaml()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smok", "There is no scenario named 'smok'. Did you mean `smoke`?"),
        ("nowhere/x.yaml", "The scenario file nowhere/x.yaml does not exist."),
    ],
)
def test_a_missing_scenario(name: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message.replace("?", r"\?")):
        loader.load(name)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not valid YAML (line"), ("[]", "must hold keys such as `load:`")]
)
def test_a_file_that_is_not_a_scenario(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)

    with pytest.raises(ScenarioError) as caught:
        loader.load(str(tmp_path / "x.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize("url", [None, "http://m:8001"])
def test_the_servers_metrics_may_have_another_url(url: str | None, tmp_path: Path) -> None:
    """On a management port, at another URL than the server's."""
    assert loader.load(scenario_file(tmp_path), {"metrics_url": url}).scenario.metrics_url == url
