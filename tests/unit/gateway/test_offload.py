"""Work in threads that do not delay the exit of the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from gateway.offload import DaemonExecutor, Offload, WorkAbandoned, checkpoint, stop_all


def test_run_returns_the_result_or_raises_the_error() -> None:
    async def ask() -> None:
        offload = Offload("test")

        assert await offload.run(lambda: threading.current_thread().name, size=1) == "test-1"
        with pytest.raises(ValueError, match="no"):
            await offload.run(partial(int, "no"), size=1)

    asyncio.run(ask())


def test_short_work_goes_first_and_tenants_take_turns() -> None:
    order: list[str] = []

    async def ask() -> None:
        offload, go = Offload("test", threads=1), threading.Event()
        first = asyncio.create_task(offload.run(go.wait, size=1))
        await asyncio.sleep(0.01)
        jobs = [("anna", 5, "a5"), ("anna", 9, "a9"), ("anna", 1, "a1"), ("bert", 7, "b7")]
        others = [
            asyncio.create_task(offload.run(partial(order.append, name), size=size, tenant=tenant))
            for tenant, size, name in jobs
        ]
        await asyncio.sleep(0.01)
        go.set()
        await asyncio.gather(first, *others)

    asyncio.run(ask())

    assert order == ["a1", "b7", "a5", "a9"]


def test_long_work_never_takes_all_threads() -> None:
    async def ask() -> None:
        offload, go = Offload("test", threads=2), threading.Event()
        long = [asyncio.create_task(offload.run(go.wait, size=2**24)) for _ in range(5)]
        await asyncio.sleep(0.01)

        assert await asyncio.wait_for(offload.run(lambda: "short", size=10), 1) == "short"
        assert await asyncio.wait_for(offload.run(lambda: "again", size=10), 1) == "again"
        go.set()
        await asyncio.gather(*long)

    asyncio.run(ask())


def test_abandoned_work_leaves_the_queue_or_stops_at_its_next_checkpoint() -> None:
    seen: list[str] = []
    begun = threading.Event()

    def work() -> None:
        begun.set()
        try:
            while True:
                checkpoint()
                time.sleep(0.001)
        except WorkAbandoned:
            seen.append("stopped")
            raise

    async def ask() -> None:
        offload = Offload("test", threads=1)
        running = asyncio.create_task(offload.run(work, size=1))
        queued = asyncio.create_task(offload.run(partial(seen.append, "never"), size=1))
        await asyncio.to_thread(begun.wait)
        for task in (queued, running):
            task.cancel()
        await asyncio.gather(running, queued, return_exceptions=True)
        await asyncio.wait_for(offload.run(partial(seen.append, "next"), size=1), 1)
        assert not offload._waiting

    asyncio.run(ask())

    assert seen == ["stopped", "next"]


def test_running_work_stops_before_the_process_ends() -> None:
    stuck = threading.Event()

    def work() -> None:
        while True:
            checkpoint()
            time.sleep(0.001)

    async def ask() -> None:
        waiting = asyncio.create_task(Offload("test").run(work, size=1))
        await asyncio.sleep(0.01)

        assert stop_all(2)
        with pytest.raises(WorkAbandoned):
            await waiting
        stubborn = asyncio.create_task(Offload("test").run(lambda: stuck.wait(5), size=1))
        await asyncio.sleep(0.01)

        assert not stop_all(0.05)
        stuck.set()
        await stubborn

    asyncio.run(ask())

    assert stop_all(1)


def test_a_checkpoint_outside_of_offloaded_work_does_nothing() -> None:
    checkpoint()


def test_the_executor_runs_its_jobs() -> None:
    with DaemonExecutor(2) as executor:
        assert sorted(executor.map(lambda one: one * 2, range(20))) == list(range(0, 40, 2))
        assert isinstance(executor.submit(partial(int, "no")).exception(), ValueError)
    with pytest.raises(RuntimeError):
        executor.submit(print)


@pytest.mark.parametrize("way", ["executor", "offload", "default"])
def test_the_process_ends_while_threads_still_run(way: str) -> None:
    script = f"""
import asyncio, time
from gateway.offload import DaemonExecutor, Offload
async def main():
    loop = asyncio.get_running_loop()
    if {way!r} == "executor":
        DaemonExecutor(1).submit(time.sleep, 60)
    elif {way!r} == "offload":
        asyncio.ensure_future(Offload("x").run(lambda: time.sleep(60), size=1))
    else:
        loop.set_default_executor(DaemonExecutor(1))
        asyncio.ensure_future(asyncio.to_thread(time.sleep, 60))
    await asyncio.sleep(0.1)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], timeout=20, check=True)
