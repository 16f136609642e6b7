"""How long a step of the synthetic engine takes, and which of its steps goes wrong. No vLLM here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The key of these numbers in vLLM's `additional_config`, on their way to the engine process.
NUMBERS = "sluice_synthetic"
# What a process that dies of SIGKILL is reported as by a shell; vLLM only sees that it is not 0.
DEAD = 137


@dataclass(frozen=True, slots=True)
class Pace:
    """The `synthetic:` settings. Steps are counted from 1, and only those that have work to do."""

    step_ms: float = 0.0
    sequence_us: float = 0.0
    prefill_us: float = 0.0
    die_at_step: int | None = None
    hang_at_step: int | None = None
    slow_at_step: int | None = None
    slow_factor: float = 1.0

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Pace:
        """From what `launch` has put into vLLM's configuration. Raises TypeError for a number that nobody knows."""
        return cls(**numbers)

    def step_s(self, step: int, sequences: int, prefill_tokens: int) -> float:
        """Seconds that `step` takes with so many sequences running and so many tokens of prompts in it."""
        time_s = self.step_ms * 1e-3 + sequences * self.sequence_us * 1e-6 + prefill_tokens * self.prefill_us * 1e-6
        slow = self.slow_at_step is not None and step >= self.slow_at_step
        return time_s * self.slow_factor if slow else time_s

    def take(self, step: int, sequences: int, prefill_tokens: int) -> None:
        """Live through `step`: die in it, never return from it, or sleep as long as it takes."""
        if step == self.die_at_step:
            os._exit(DEAD)
        if step == self.hang_at_step:
            # A step that hangs on a real device sits in native code, where Python's signal handlers do not run.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            while True:
                time.sleep(3600)
        time_s = self.step_s(step, sequences, prefill_tokens)
        if time_s > 0:
            time.sleep(time_s)


__all__ = ["DEAD", "NUMBERS", "Pace"]
