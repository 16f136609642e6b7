from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.mock.plan import MockPlan, PlanError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ttft_ms: {kind: lognormal, mean: 0, cv: 1}",
            "ttft_ms.lognormal: Value error, mean and cv must be numbers above 0",
        ),
        ("ttft_ms: {kind: uniform, low: 3, high: 1}", r"min \(3\) is above max \(1\)"),
        ("itl_ms: {kind: choice, values: [1, 2], weights: [1]}", "weights need one number for each of the 2 values"),
        ("ttft: 3", "ttft: Extra inputs"),
        ("faults: [{kind: cut, share: 0.7}, {kind: stall, share: 0.6}]", "add up to 1.3"),
        ("faults: [{kind: cot, share: 0.7}]", "faults.0.kind"),
        ("a: b: c", "not YAML"),
    ],
)
def test_an_invalid_plan_is_rejected_with_the_name_of_its_field(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)

    with pytest.raises(PlanError, match=message):
        MockPlan.read(file)


def test_the_command_reports_an_invalid_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("ttft: 3")
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.mock", "--plan", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "ttft: Extra inputs" in done.stderr
