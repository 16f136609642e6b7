"""The process: signals and drain."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from gateway import server, shutdown
from gateway.settings import Settings
from gateway.transports.http.connection import HttpConnection
from tests.support.connection_apps import App
from tests.support.time import in_virtual_time, settle


class Process:
    """A server, and the registry of the app that it stops, which records its calls."""

    def __init__(self, running_s: float = 5.0) -> None:
        self.running_s = running_s
        self.calls: list[Any] = []
        self.server = server.ServerProcess(
            uvicorn.Config(App(), http=HttpConnection, ws="none", lifespan="off", log_config=None)
        )
        self.server.sluice = SimpleNamespace(registry=self)  # type: ignore[assignment]
        self.server.drain_timeout_s = 30.0

    async def drain(self, timeout_s: float) -> None:
        self.calls.append(timeout_s)
        await asyncio.sleep(self.running_s)

    def end_all(self) -> None:
        self.calls.append("now")


@contextlib.contextmanager
def signals_of(process: Process) -> Iterator[None]:
    """Signal handlers without signals: they do not work in virtual time."""
    handlers: dict[int, Any] = {}

    def add(number: int, act: Any) -> None:
        handlers[number] = partial(act, number, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", add)
        with process.server.capture_signals():
            process.signals = handlers  # type: ignore[attr-defined]
            yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_virtual_time
async def test_the_first_signal_drains_and_then_stops(number: int) -> None:
    process = Process(running_s=5)
    with signals_of(process):
        process.signals[number]()  # type: ignore[attr-defined]
        await asyncio.sleep(4.9)

        assert (process.calls, process.server.should_exit) == ([30.0], False), "the listeners stay open"

        await asyncio.sleep(0.2)

    assert (process.server.should_exit, process.server.force_exit, process.calls) == (True, False, [30.0])


@in_virtual_time
async def test_the_second_signal_ends_everything_now() -> None:
    process = Process(running_s=1000)
    forced: list[Any] = []
    process.server.force_exit_after = lambda within_s, code: forced.append((within_s, code))
    with signals_of(process):
        process.signals[signal.SIGTERM]()  # type: ignore[attr-defined]
        await asyncio.sleep(1)

        assert forced == []

        process.signals[signal.SIGINT]()  # type: ignore[attr-defined]
        await settle()

    assert (process.server.should_exit, process.server.force_exit, process.calls) == (True, True, [30.0, "now"])
    assert forced == [(shutdown.FORCED_EXIT_WITHIN_S, 1)]
    assert process.server.signals == ("SIGTERM", "SIGINT")

    assert process.server._drain_task is not None
    process.server._drain_task.cancel()


def test_idle_connections_are_kept_for_longer_than_proxies_keep_them() -> None:
    assert Settings().server.idle_timeout_s > 60
