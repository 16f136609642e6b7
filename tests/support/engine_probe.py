"""A vLLM plugin for the engine process that records when the scheduler adds and when it drops a request.

It can also set the wall clock of the gateway and of the engine wrong.

A metric would not do: scraping costs the server milliseconds, and vLLM's gauges are as old as the last step. This line
is written inside the call that drops the request, with a clock that all processes of the machine share.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Not SLUICE_...: those are settings.
_VARIABLE = "ENGINE_PROBE_FILE"
_CLOCK = "ENGINE_PROBE_CLOCK"


@dataclass(frozen=True, slots=True)
class Note:
    """One request at one moment. `tokens_wanted` is its `max_tokens`, by which tests tell requests apart; `known` and
    `kv_usage` are the engine's other requests and the share of its KV blocks in use, before a request is added."""

    at_s: float
    event: str
    tokens_wanted: int
    output_tokens: int
    known: int
    kv_usage: float


class EngineProbe:
    """The notes of one server's engine."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "engine-notes.txt"
        self._file.touch()
        self._read = 0
        self._notes: list[Note] = []
        # vLLM loads what installed distributions announce, and these lines are all that makes one.
        info = folder / "engine_probe-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: engine-probe\nVersion: 0\n")
        plugin = "engine_probe = tests.support.engine_probe:install"
        (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{plugin}\n")
        path = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._clock = folder / "wall-clock.txt"
        self.set_clock(0)
        self.env = {_VARIABLE: str(self._file), _CLOCK: str(self._clock), "PYTHONPATH": path}
        """Environment variables for the server."""

    def set_clock(self, seconds: float) -> None:
        """Set Python's wall clock in the gateway and in the engine wrong by `seconds`, within 20 ms."""
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(f"{seconds}")
        fresh.replace(self._clock)

    def notes(self) -> list[Note]:
        """All notes so far; reading them costs the server nothing."""
        with self._file.open() as file:
            file.seek(self._read)
            while (line := file.readline()).endswith("\n"):
                self._read += len(line)
                at_s, event, wanted, output, known, usage = line.split()
                self._notes.append(Note(float(at_s), event, int(wanted), int(output), int(known), float(usage)))
        return self._notes

    def of(self, event: str) -> dict[int, list[Note]]:
        """The notes of one event, by `tokens_wanted`."""
        found: dict[int, list[Note]] = {}
        for note in self.notes():
            if note.event == event:
                found.setdefault(note.tokens_wanted, []).append(note)
        return found


def install() -> None:
    """Entry point of the group `vllm.general_plugins`."""
    if _VARIABLE not in os.environ:
        return
    _bend_clock(Path(os.environ[_CLOCK]))
    if multiprocessing.parent_process() is None:
        return
    from vllm.v1.core.sched.scheduler import Scheduler

    file = os.open(os.environ[_VARIABLE], os.O_WRONLY | os.O_APPEND)
    add, finish = Scheduler.add_request, Scheduler.finish_requests

    def note(self: Any, event: str, request: Any, at_s: float) -> None:
        counts = f"{request.max_tokens} {request.num_output_tokens} {len(self.requests)}"
        os.write(file, f"{at_s:.6f} {event} {counts} {self.kv_cache_manager.usage:.6f}\n".encode())

    def noted_add(self: Any, request: Any) -> None:
        note(self, "add", request, time.monotonic())
        add(self, request)

    def noted_finish(self: Any, *args: Any, **options: Any) -> Any:
        dropped = finish(self, *args, **options)
        at_s = time.monotonic()
        for request in dropped or ():
            note(self, "drop", request, at_s)
        return dropped

    Scheduler.add_request, Scheduler.finish_requests = noted_add, noted_finish


def _bend_clock(file: Path) -> None:
    wrong_by_s = 0.0
    right, right_ns = time.time, time.time_ns

    def follow() -> None:
        nonlocal wrong_by_s
        while True:
            wrong_by_s = float(file.read_text())
            time.sleep(0.02)

    bent: dict[str, Callable[[], float]] = {
        "time": lambda: right() + wrong_by_s,
        "time_ns": lambda: right_ns() + int(wrong_by_s * 1e9),
    }
    for name, clock in bent.items():
        setattr(time, name, clock)
    threading.Thread(target=follow, name="bent-clock", daemon=True).start()


__all__ = ["EngineProbe", "Note", "install"]
