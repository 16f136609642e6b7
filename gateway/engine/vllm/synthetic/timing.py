"""How long a step of the synthetic engine takes, and which of its steps goes wrong. No vLLM here."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any

# The key of these numbers in vLLM's `additional_config`, on their way to the engine process.
SETTINGS_KEY = "sluice_synthetic"
# What a process that dies of SIGKILL is reported as by a shell; vLLM only sees that it is not 0.
EXIT_CODE = 137
# A look at the control file costs as much as a token; this often is soon enough for whoever writes it.
_RELOAD_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class StepTiming:
    """The `synthetic:` settings. Steps are counted from 1, and only those that have work to do."""

    step_ms: float = 0.0
    sequence_us: float = 0.0
    prefill_us: float = 0.0
    die_at_step: int | None = None
    hang_at_step: int | None = None
    slow_at_step: int | None = None
    slow_factor: float = 1.0
    poison_token: int | None = None
    poison_length: int = 0
    busy: bool = False

    def is_deadly(self, first: int, length: int) -> bool:
        """Whether the engine dies of computing a sequence that begins with this token and has so many."""
        return first == self.poison_token and length >= self.poison_length

    def step_s(self, step: int, sequences: int, prefill_tokens: int) -> float:
        """Seconds that `step` takes with so many sequences running and so many tokens of prompts in it."""
        time_s = self.step_ms * 1e-3 + sequences * self.sequence_us * 1e-6 + prefill_tokens * self.prefill_us * 1e-6
        slow = self.slow_at_step is not None and step >= self.slow_at_step
        return time_s * self.slow_factor if slow else time_s

    def run_step(self, step: int, sequences: int, prefill_tokens: int) -> None:
        """Live through `step`: die in it, never return from it, or sleep as long as it takes."""
        if step == self.die_at_step:
            os._exit(EXIT_CODE)
        if step == self.hang_at_step:
            # A step that hangs on a real device sits in native code, where Python's signal handlers do not run.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            self._spend(inf)
        self._spend(self.step_s(step, sequences, prefill_tokens))

    def _spend(self, time_s: float) -> None:
        began_s = time.monotonic()
        while (left_s := time_s - (time.monotonic() - began_s)) > 0:
            if not self.busy:
                time.sleep(min(left_s, 3600.0))


class FaultControl:
    """The pace of now: the settings, changed by whatever stands in the control file, if there is one.

    The file is a JSON object with settings of `synthetic:`, by name; an absent or empty file changes nothing. Steps in
    it count from when it was read. A file that cannot be understood is ignored, because an engine must not die of a
    half-written line.
    """

    def __init__(self, numbers: Mapping[str, Any]) -> None:
        """From what `launch` has put into vLLM's configuration. Raises TypeError for a number that nobody knows."""
        numbers = dict(numbers)
        file = numbers.pop("control_file", None)
        self._file = None if file is None else Path(file)
        self._settings = StepTiming(**numbers)
        self.timing = self._settings
        self._stamp = 0
        self._looked_s = 0.0
        self._step = 0

    def run_step(self, sequences: int, prefill_tokens: int) -> None:
        """Live through the next step."""
        if self._file is not None and time.monotonic() - self._looked_s > _RELOAD_EVERY_S:
            self.reload()
        self._step += 1
        self.timing.run_step(self._step, sequences, prefill_tokens)

    def reload(self) -> None:
        """Read the control file, if it has changed."""
        self._looked_s = time.monotonic()
        assert self._file is not None
        try:
            stamp = self._file.stat().st_mtime_ns
            if stamp == self._stamp:
                return
            self._stamp = stamp
            given = json.loads(self._file.read_text(encoding="utf-8") or "{}")
            known = {field.name for field in fields(StepTiming)}
            self.timing = replace(self._settings, **{name: value for name, value in given.items() if name in known})
            self._step = 0
        except (OSError, ValueError, AttributeError):
            return


__all__ = ["EXIT_CODE", "SETTINGS_KEY", "FaultControl", "StepTiming"]
