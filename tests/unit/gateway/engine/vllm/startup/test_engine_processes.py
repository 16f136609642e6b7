"""Engine processes of a parent, over stand-ins for vLLM's managers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine.vllm.startup import engine_processes, launcher
from gateway.engine.vllm.startup.engine_processes import EngineProcesses, EngineProcessLauncher
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.engine.vllm.startup.startup_errors import StartupErrors
from gateway.errors import SettingsError
from tests.support.time import in_real_time


class Process:
    """A process whose sentinel becomes readable when it ends, as that of multiprocessing."""

    def __init__(self, pid: int, acts: list[str]) -> None:
        self.pid = pid
        self.sentinel, self._alive = os.pipe()
        self._acts = acts

    def end(self) -> None:
        os.close(self._alive)

    def kill(self) -> None:
        self._acts.append(f"kill {self.pid}")

    def join(self, timeout_s: float) -> None:
        self._acts.append(f"join {self.pid}")


class Bench:
    def __init__(self) -> None:
        self.acts: list[str] = []
        self.all = [Process(pid, self.acts) for pid in (1, 2, 3)]
        manager = SimpleNamespace(
            processes=self.all[:2], shutdown=lambda timeout: self.acts.append(f"shutdown {timeout:g}")
        )
        coordinator = SimpleNamespace(proc=self.all[2], shutdown=lambda: self.acts.append("shutdown coordinator"))
        self.processes = EngineProcesses((), manager, coordinator)


@in_real_time
async def test_the_death_of_any_of_them_is_that_of_all() -> None:
    bench = Bench()
    waiting = asyncio.ensure_future(bench.processes.wait_dead())
    await asyncio.sleep(0)
    assert not waiting.done()

    bench.all[2].end()
    await asyncio.wait_for(waiting, 5)


@in_real_time
async def test_their_end_is_waited_for_because_the_next_engine_needs_their_memory() -> None:
    bench = Bench()
    await bench.processes.end(3)

    assert bench.processes.pids == [1, 2, 3]
    assert bench.acts == ["shutdown 3", "shutdown coordinator", "join 1", "join 2", "join 3"]


@in_real_time
async def test_stuck_ones_are_killed() -> None:
    bench = Bench()
    bench.processes.kill()

    assert bench.acts == ["kill 1", "kill 2", "kill 3"]


@in_real_time
async def test_a_process_is_prepared_once_and_its_stages_are_reported_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared: list[EnginePlan] = []
    stages: list[str] = []

    def prepare(plan: EnginePlan) -> StartupErrors:
        prepared.append(plan)
        return StartupErrors(tmp_path / "errors.log", "m")

    def start(plan: EnginePlan) -> Any:
        plan.on_stage("importing vLLM")
        if len(stages) + len(prepared) > 2:
            raise OSError("No space left on device")
        return "processes"

    monkeypatch.setattr(launcher, "prepare", prepare)
    monkeypatch.setattr(engine_processes, "_launch", start)
    starts = EngineProcessLauncher(EnginePlan(engine={}, on_stage=stages.append))

    assert await starts.launch() == "processes"  # type: ignore[comparison-overlap]
    assert await starts.launch() == "processes"  # type: ignore[comparison-overlap]
    assert (len(prepared), stages) == (1, ["importing vLLM"])

    stages.append("more")
    with pytest.raises(SettingsError, match="The engine could not start: A disk is full"):
        await starts.launch()
