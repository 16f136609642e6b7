from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from loadtest.mock.draw import Draw, sampler
from loadtest.mock.plan import MockPlan, PlanError


@pytest.mark.parametrize(
    ("draw", "mean", "spread"),
    [
        (7, 7, 0),
        ({"kind": "uniform", "low": 2, "high": 6}, 4, 4 / 12**0.5),
        ({"kind": "lognormal", "mean": 50, "cv": 0.4}, 50, 20),
        ({"kind": "exponential", "mean": 9}, 9, 9),
        ({"kind": "choice", "values": [1, 5], "weights": [3, 1]}, 2, 3**0.5),
    ],
)
def test_a_draw_has_the_mean_and_the_spread_that_it_names(draw: Any, mean: float, spread: float) -> None:
    following = sampler(TypeAdapter[Any](Draw).validate_python(draw), MockPlan().make_rng("x"))
    values = [following() for _ in range(20_000)]

    assert statistics.mean(values) == pytest.approx(mean, rel=0.03)
    assert statistics.pstdev(values) == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft_ms: {kind: lognormal, mean: 0, cv: 1}", "ttft_ms.lognormal.mean"),
        ("ttft_ms: {kind: uniform, low: 3, high: 1}", "high is below low"),
        ("itl_ms: {kind: choice, values: [1, 2], weights: [1]}", "give each one"),
        ("ttft: 3", "ttft: Extra inputs"),
        ("faults: [{kind: cut, share: 0.7}, {kind: stall, share: 0.6}]", "add up to 1.3"),
        ("faults: [{kind: cot, share: 0.7}]", "faults.0.kind"),
        ("a: b: c", "not YAML"),
    ],
)
def test_a_bad_plan_is_refused_by_the_name_of_its_field(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)

    with pytest.raises(PlanError, match=said):
        MockPlan.read(file)


def test_the_command_says_what_is_wrong_with_its_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("ttft: 3")
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.mock", "--plan", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "ttft: Extra inputs" in done.stderr
