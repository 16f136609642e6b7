"""`sluice-load run` against a real server: every kind of client at once, and not one token wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from loadtest.measure.result import Result
from tests.support.server import Server

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = [
    {
        "name": "ids",
        "share": 3,
        "endpoint": "completions",
        "prompt": "token_ids",
        "prompt_tokens": {"kind": "uniform", "min": 5, "max": 60},
        "output_tokens": {"kind": "uniform", "min": 10, "max": 40},
        "behaviours": [
            {"kind": "cancel", "share": 0.1, "after_tokens": {"kind": "uniform", "min": 1, "max": 20}},
            {"kind": "cancel", "share": 0.1, "before_first_token": True},
            {"kind": "cancel", "share": 0.1, "after_s": 0.1},
            {"kind": "stall", "share": 0.1, "pause_s": 1},
            {"kind": "slow", "share": 0.1, "bytes_per_s": 20000},
            {"kind": "resume", "share": 0.2, "after_events": 5, "times": 2},
        ],
    },
    {"name": "talk", "turns": 2, "prefix": {"tokens": 20}, "prompt_tokens": 20, "output_tokens": 20},
    {"name": "whole", "stream": False, "prompt_tokens": 20, "output_tokens": 20},
]
SCENARIO = {
    "stages": {"warmup_s": 1, "measure_s": 5, "drain_s": 20},
    "load": {"kind": "poisson", "rate": 15},
    "verify": "synthetic",
    "workloads": WORKLOADS,
    # The machine that runs the tests is shared.
    "generator": {"lateness_p99_ms": 5000, "loop_lag_p99_ms": 5000},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("load"), env={"SLUICE_SYNTHETIC__ENABLED": "true"})
    try:
        one.wait_ready()
        yield one
    finally:
        one.close()


def test_every_kind_of_client_at_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(SCENARIO))
    words = ["run", str(tmp_path / "mine.yaml"), "--url", server.url, "--out", str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.cli", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    result = Result.read(tmp_path / "out" / "result.json")
    assert result.summary.errors_by_kind == {}
    assert result.summary.requests > 40
    assert result.summary.cancelled_by_plan > 0
    assert {group.workload for group in result.groups} == {"ids", "talk", "whole"}
    assert result.integrity.violations == {}
    assert result.integrity.verified_tokens > 800
    assert result.integrity.freed_after_cancels is True
    assert result.server.scraped
    # What was on its way to clients who left is counted there, and not here.
    assert result.server.generated_tokens is not None
    assert result.server.client_tokens is not None
    assert 0 <= result.server.generated_tokens - result.server.client_tokens < 0.1 * result.server.client_tokens
