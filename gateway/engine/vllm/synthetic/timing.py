"""How long a step of the synthetic engine takes, and which of its steps fails. Imports no vLLM."""

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

# The key of the settings in vLLM's `additional_config`, which reaches the engine process.
SETTINGS_KEY = "sluice_synthetic"
# The status that a shell reports for a process that dies of SIGKILL; for vLLM any status but 0 is the same.
EXIT_CODE = 137
# Looking at the control file costs as much as a token; tests and operators can wait this long.
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
        """Whether the engine dies of a sequence that begins with the token `first` and has `length` tokens."""
        return first == self.poison_token and length >= self.poison_length

    def step_s(self, step: int, sequences: int, prefill_tokens: int) -> float:
        """Seconds that `step` takes."""
        time_s = self.step_ms * 1e-3 + sequences * self.sequence_us * 1e-6 + prefill_tokens * self.prefill_us * 1e-6
        slow = self.slow_at_step is not None and step >= self.slow_at_step
        return time_s * self.slow_factor if slow else time_s

    def run_step(self, step: int, sequences: int, prefill_tokens: int) -> None:
        """Die in `step`, never return from it, or sleep as long as it takes."""
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
    """The current timing: the settings, with the changes in the control file, if there is one.

    The file is a JSON object with settings of `synthetic:`, by name; an absent or empty file changes nothing. Steps in
    it count from when it was read. A file that cannot be parsed is ignored, because an engine must not die of a
    half-written line.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """From the settings in vLLM's configuration. Raises TypeError for an unknown one."""
        settings = dict(settings)
        file = settings.pop("control_file", None)
        self._file = None if file is None else Path(file)
        self._settings = StepTiming(**settings)
        self.timing = self._settings
        self._stamp = 0
        self._read_s = 0.0
        self._step = 0

    def run_step(self, sequences: int, prefill_tokens: int) -> None:
        """Run the next step."""
        if self._file is not None and time.monotonic() - self._read_s > _RELOAD_EVERY_S:
            self.reload()
        self._step += 1
        self.timing.run_step(self._step, sequences, prefill_tokens)

    def reload(self) -> None:
        """Read the control file, if it has changed."""
        self._read_s = time.monotonic()
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
