"""The arithmetic of admission: how many seats are free, and when one will be. Pure: no clock, no asyncio.

A seat is one sequence in the engine, so a request for n choices takes n seats.
"""

from __future__ import annotations

import math

# How much a finished request moves the average holding time: about the last ten requests count.
SMOOTHING = 0.2
# Before any request has finished nobody knows how long one takes; one second is a polite first guess.
FIRST_GUESS_S = 1.0
# A client told to wait longer than this would rather try another server; shorter than 1 s is not expressible.
RETRY_AFTER_RANGE_S = (1, 120)


class Budget:
    """Seats taken and free, and a running average of how long a request holds its seats."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.taken = 0
        self._hold_s = FIRST_GUESS_S
        self._measured = False

    def fits(self, slots: int) -> bool:
        """Whether that many seats are free."""
        return self.taken + slots <= self.slots

    def take(self, slots: int) -> None:
        """Occupy seats; the caller has asked `fits` first."""
        self.taken += slots

    def give_back(self, slots: int, held_s: float | None) -> None:
        """Free seats that were held for `held_s` seconds; None if they were never used."""
        self.taken -= slots
        if held_s is None:
            return
        if not self._measured:
            self._hold_s, self._measured = held_s, True
        else:
            self._hold_s += SMOOTHING * (held_s - self._hold_s)

    def retry_after_s(self, waiting_slots: int) -> int:
        """Seconds until a newcomer behind `waiting_seats` could start, by Little's law.

        Seats come free at `seats / hold` per second, and `waiting_seats + 1` must come free first.
        """
        expected = (waiting_slots + 1) * self._hold_s / self.slots
        low, high = RETRY_AFTER_RANGE_S
        return min(high, max(low, math.ceil(expected)))


__all__ = ["Budget"]
