"""What the load generator's modules may know: rules know no socket, and only Locust's side patches the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
RULES = (
    "scenario.distributions scenario.arrivals scenario.behaviours scenario.loader scenario.prompt_text "
    "client.response measure.record scenario.model scenario.slo client.sse measure.aggregates "
    "client.token_check scenario.traces scenario.workload"
)
BELOW_LOCUST = (
    "generator.precise_timer client.request_runner cli client.connection generator.load_worker "
    "generator.health runner.run_plan client.pool generator.preflight generator.request_log "
    "runner.summarise client.tls"
)


def loaded_with(modules: str) -> set[str]:
    """The packages that an import of these modules brings along, in a process of its own."""
    names = ", ".join(f"loadtest.{name}" for name in modules.split())
    code = f"import sys, {names}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env=env)
    return set(done.stdout.split())


def test_rules_know_neither_sockets_nor_locust() -> None:
    assert not loaded_with(RULES) & {"gevent", "locust", "httptools"}


def test_only_locusts_side_patches_the_process() -> None:
    found = loaded_with(BELOW_LOCUST)

    assert "gevent" in found
    assert "locust" not in found
