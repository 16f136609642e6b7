"""A server process over a scripted engine: `python -m tests.support.scripted_server`.

Arguments are settings, such as `server.uds=/tmp/s`; `stuck` has threads that never end, `frozen` an event loop that
stands still once the server is ready.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

from prometheus_client import CollectorRegistry

from gateway import logs, server
from gateway.app import Sluice
from gateway.clock import SystemClock
from gateway.metrics import Metrics
from gateway.settings import load
from tests.support.engine import ScriptedEngine


def compute() -> None:
    while True:
        sum(range(1000))


def main(words: list[str]) -> int:
    given: dict[str, dict[str, Any]] = {}
    for name, _, value in (word.partition("=") for word in words if "=" in word):
        section, _, key = name.partition(".")
        given.setdefault(section, {})[key] = value
    settings = load(given, None)
    logs.configure("info", False)

    async def launch() -> ScriptedEngine:
        return ScriptedEngine()

    def ready(on_ready: Any) -> None:
        on_ready(sluice[0])
        if "stuck" in words:
            threading.Thread(target=compute).start()
            asyncio.get_running_loop().run_in_executor(None, compute)
        if "frozen" in words:
            asyncio.get_running_loop().call_later(0.5, time.sleep, 1000)

    sluice: list[Sluice] = []

    def build(on_ready: Any, on_failure: Any) -> Sluice:
        sluice.append(
            Sluice(
                settings,
                launch=launch,
                clock=SystemClock(),
                metrics=Metrics("0", CollectorRegistry()),
                on_ready=lambda: ready(on_ready),
                on_failure=on_failure,
            )
        )
        return sluice[0]

    return server.serve(settings, build, logs.StartupLog())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
