"""The watch over an engine, over a stand-in for its client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.engine.os_processes import Usage
from tests.support.time import clock, in_virtual_time
from tests.unit.gateway.engine.vllm.stub_vllm import beside_stub


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with beside_stub(monkeypatch, "core_client.watch") as module:
        yield module


class Core:
    """As much of the core client as the watch looks at."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.pids = [7]
        self.engine_count, self.silent_engine = 1, 0
        self.last_output_s = clock().now()
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_operators_pause = False
        self.acts: list[str] = []

    async def is_paused(self) -> bool:
        await self.answers.wait()
        self.last_output_s = clock().now()
        return self.is_operators_pause

    def has_backlog(self) -> bool:
        return False

    def has_died(self) -> bool:
        return False

    def kill(self) -> None:
        self.acts.append("kill")

    def mark_lost(self) -> None:
        self.acts.append("lose")
        self.lost.set()

    async def find_culprit(self) -> None:
        self.acts.append("find_culprit")


class Watched:
    def __init__(self, watch: Any, monkeypatch: pytest.MonkeyPatch, cpu_share: float = 0.0) -> None:
        self.core = Core()
        self.unready_reason: str | None = None
        self.began_s = clock().now()
        now = clock()
        monkeypatch.setattr(watch, "usage", lambda _: Usage(cpu_share * now.now(), False))
        timeouts = watch.HangTimeouts(hang_timeout_s=60, long_step_timeout_s=600)
        watching = watch.wait_dead(self.core, clock(), timeouts, self._look)
        self.task = asyncio.get_running_loop().create_task(watching)

    def _look(self, trouble: str | None) -> None:
        self.unready_reason = trouble


@in_virtual_time
async def test_an_engine_that_hangs_is_not_ready_within_seconds_and_replaced_within_the_limit(
    watch: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(watch, monkeypatch)
    await asyncio.sleep(100)

    assert (watched.unready_reason, watched.core.acts) == (None, [])

    watched.core.answers.clear()
    await asyncio.sleep(8)

    assert "has not answered" in str(watched.unready_reason)
    assert watched.core.acts == []

    await asyncio.sleep(50)
    watched.core.answers.set()
    await asyncio.sleep(2)

    assert (watched.unready_reason, watched.core.acts) == (None, []), "it answers again"

    watched.core.answers.clear()
    await asyncio.sleep(63)

    assert watched.core.acts == ["kill", "lose", "find_culprit"]
    assert watched.task.done()
    text = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in text[:3]] == ["not ready", "ready again", "not ready"]
    assert "it is ended" in text[3]


@in_virtual_time
async def test_of_several_engines_the_silent_one_is_named(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(watch, monkeypatch)
    watched.core.engine_count, watched.core.silent_engine = 4, 3
    watched.core.answers.clear()
    await asyncio.sleep(8)

    assert str(watched.unready_reason).endswith("(data-parallel engine 3)")

    watched.task.cancel()
    await asyncio.gather(watched.task, return_exceptions=True)


@in_virtual_time
async def test_one_that_computes_has_the_longer_limit(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(watch, monkeypatch, cpu_share=1.0)
    watched.core.answers.clear()
    await asyncio.sleep(590)

    assert watched.core.acts == []

    await asyncio.sleep(20)

    assert watched.core.acts == ["kill", "lose", "find_culprit"]


@in_virtual_time
async def test_a_pause_of_this_process_is_not_a_death(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on while the process is stopped."""
    watched = Watched(watch, monkeypatch)
    for _ in range(10):
        await asyncio.sleep(3)
        watched.core.answers.clear()
        await asyncio.sleep(1.2)
        clock().advance(62)
        watched.core.answers.set()
        await asyncio.sleep(1)

        assert (watched.unready_reason, watched.core.acts) == (None, [])

    watched.task.cancel()
    await asyncio.gather(watched.task, return_exceptions=True)


@in_virtual_time
async def test_an_operators_pause_is_no_death_but_a_reason(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(watch, monkeypatch)
    watched.core.is_operators_pause = True
    await asyncio.sleep(3)

    assert watched.unready_reason == "the engine is paused"

    await asyncio.sleep(1000)

    assert watched.core.acts == []

    watched.task.cancel()
    await asyncio.gather(watched.task, return_exceptions=True)
