"""A client of engine processes that another process runs; `test_restartable.py` has two of them on trial."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.time import clock, in_virtual_time
from tests.unit.gateway.engine.vllm.core_client.stub_core import Bench, outputs
from tests.unit.gateway.engine.vllm.stub_vllm import beside_stub


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with beside_stub(monkeypatch, "core_client.restartable") as module:
        yield module


class SharedBench(Bench):
    def __init__(self, core: Any) -> None:
        super().__init__(core)
        self.reports = 0
        self.attached: list[Any] = []
        host = SimpleNamespace(
            trial_lock=None, pids=[7], attach=self.attached.append, report_unresponsive=self.count_report
        )
        shared = importlib.import_module("gateway.engine.vllm.core_client.shared")
        self.core = shared.SharedCoreClient(self.first, self.processor, clock(), host)

    def count_report(self) -> None:
        self.reports += 1


@in_virtual_time
async def test_it_has_the_time_of_each_engines_last_statistics(core: Any) -> None:
    bench = SharedBench(core)
    for engine, stats in ((0, "stats"), (1, "stats"), (1, None)):
        await asyncio.sleep(1)
        bench.first.outputs.put_nowait(SimpleNamespace(**vars(outputs()), engine_index=engine, scheduler_stats=stats))
        await bench.core.get_output_async()

    assert bench.core.stats_received_s == {0: clock().now() - 2, 1: clock().now() - 1}


@in_virtual_time
async def test_its_host_ends_the_processes_and_gets_one_report_that_they_do_not_answer(core: Any) -> None:
    bench = SharedBench(core)

    assert bench.attached == [bench.core]
    assert bench.core.pids == [7]

    bench.core.kill()
    for _ in range(2):
        bench.core.mark_lost()

    assert (bench.reports, bench.core.lost.is_set()) == (1, True)
    assert bench.first.process.acts == []


@in_virtual_time
async def test_an_abort_is_one_until_the_host_reports_the_death(core: Any) -> None:
    """The processes are no children of this one, so it cannot look whether they are ending."""
    bench = SharedBench(core)
    bench.first.process.is_alive = lambda: False
    await bench.add("r1", [])
    aborted = SimpleNamespace(**vars(outputs(("r1", "abort"))), engine_index=0, scheduler_stats=None)
    bench.first.outputs.put_nowait(aborted)

    assert await bench.core.get_output_async() is aborted
    assert (len(aborted.outputs), bench.core.lost.is_set()) == (1, False)
