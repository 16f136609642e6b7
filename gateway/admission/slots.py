"""The arithmetic of admission: how many slots are free, and when the next one will be. Pure: no clock, no asyncio.

A slot is the right to run one sequence in the engine, so a request for n choices takes n slots.
"""

from __future__ import annotations

import math

# How much a finished request moves the average holding time: about the last ten requests count.
SMOOTHING = 0.2
# The estimate before any request has finished.
FIRST_GUESS_S = 1.0
# With a longer wait than this a client would rather try another server; shorter than 1 s is not expressible.
RETRY_AFTER_RANGE_S = (1, 120)


class SlotPool:
    """The slots of the engine, and a running average of how long a request holds its slots."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.taken = 0
        self._hold_s = FIRST_GUESS_S
        self._measured = False

    def fits(self, slots: int) -> bool:
        """Whether that many slots are free."""
        return self.taken + slots <= self.slots

    def take(self, slots: int) -> None:
        """Take slots; only if they fit."""
        self.taken += slots

    def release(self, slots: int, held_s: float | None) -> None:
        """Free slots that were held for `held_s` seconds; None if they were never used."""
        self.taken -= slots
        if held_s is None:
            return
        if not self._measured:
            self._hold_s, self._measured = held_s, True
        else:
            self._hold_s += SMOOTHING * (held_s - self._hold_s)

    def retry_after_s(self, queued_slots: int) -> int:
        """Seconds until a request behind `queued_slots` could start, by Little's law.

        Slots become free at `slots / hold` per second, and `queued_slots + 1` must become free first.
        """
        expected = (queued_slots + 1) * self._hold_s / self.slots
        low, high = RETRY_AFTER_RANGE_S
        return min(high, max(low, math.ceil(expected)))
