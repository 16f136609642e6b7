"""The states of a stream and the only ways between them. Pure: no IO, no clock, no asyncio.

Everything about transitions is in the table below; who drives it does not matter to it.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """Where a stream is."""

    QUEUED = auto()
    RUNNING = auto()
    ENDED = auto()


class Signal(Enum):
    """What can happen to it."""

    START = auto()
    PIECE = auto()
    END = auto()


_TABLE: dict[tuple[State, Signal], State] = {
    (State.QUEUED, Signal.START): State.RUNNING,
    (State.QUEUED, Signal.END): State.ENDED,
    (State.RUNNING, Signal.PIECE): State.RUNNING,
    (State.RUNNING, Signal.END): State.ENDED,
}


class Lifecycle:
    """One stream's state. What the table does not allow is refused, never an exception: an engine may well deliver
    one more token for a stream that has just been cancelled."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = State.QUEUED

    def step(self, signal: Signal) -> bool:
        """Take the step if the table has it; say whether it was taken."""
        after = _TABLE.get((self.state, signal))
        if after is None:
            return False
        self.state = after
        return True


__all__ = ["Lifecycle", "Signal", "State"]
