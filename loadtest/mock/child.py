"""The mock in a child process, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.mock.ground_truth import GroundTruth
from loadtest.mock.plan import MockPlan


class MockProcess:
    """A running mock. `cpus`: its CPU affinity."""

    def __init__(self, folder: Path, plan: MockPlan, cpus: set[int] | None = None) -> None:
        """Starts the process and waits until it listens. Raises RuntimeError if it does not."""
        folder.mkdir(parents=True, exist_ok=True)
        self._truth = folder / "truth.jsonl"
        plan_file = folder / "plan.yaml"
        plan_file.write_text(json.dumps(plan.model_dump(mode="json")), encoding="utf-8")
        argv = [sys.executable, "-m", "loadtest.mock", "--port", "0", "--plan", str(plan_file)]
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [*argv, "--truth", str(self._truth)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        if cpus is not None:
            os.sched_setaffinity(self.process.pid, cpus)
        assert self.process.stdout is not None
        ready_line = self.process.stdout.readline().split()
        if not ready_line:
            raise RuntimeError(f"the mock ended with code {self.process.wait()}")
        self.url = ready_line[-1]
        self.port = int(self.url.rpartition(":")[2])

    def end(self) -> GroundTruth:
        """Stop it, and read the ground truth."""
        self.process.terminate()
        self.process.communicate(timeout=30)
        return GroundTruth.read(self._truth)

    def close(self) -> None:
        """Kill it unless it has ended. May be called again."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def running_mock(folder: Path, plan: MockPlan, cpus: set[int] | None = None) -> Iterator[MockProcess]:
    """A mock for the duration of the block; call `end` inside to get the ground truth."""
    child = MockProcess(folder, plan, cpus)
    try:
        yield child
    finally:
        child.close()
