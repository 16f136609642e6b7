"""The states of a stream and the only ways between them. Pure: no IO, no clock, no asyncio.

    QUEUED --START--> RUNNING <--ENGINE_RECOVERED-- RECOVERING
       |                 |   \\------ENGINE_LOST-------^   |
       |                 |                                |
       `--END(cause)-----+------------END(cause)----------+----> ENDED, with its cause

Everything about transitions is in the two tables below; who drives them does not matter here.
"""

from __future__ import annotations

from enum import IntEnum, auto

from gateway.domain import Cause


class State(IntEnum):
    """Where a stream is."""

    QUEUED = auto()
    """At the gate, or being rendered."""
    RUNNING = auto()
    RECOVERING = auto()
    """Its engine has died; another will go on where it stood."""
    ENDED = auto()


class Signal(IntEnum):
    """What can happen to it, besides its end."""

    START = auto()
    OUTPUT = auto()
    ENGINE_LOST = auto()
    ENGINE_RECOVERED = auto()


_TABLE: dict[tuple[State, Signal], State] = {
    (State.QUEUED, Signal.START): State.RUNNING,
    (State.RUNNING, Signal.OUTPUT): State.RUNNING,
    (State.RUNNING, Signal.ENGINE_LOST): State.RECOVERING,
    # What the engine had said before it died may still be on its way through a formatter.
    (State.RECOVERING, Signal.OUTPUT): State.RECOVERING,
    (State.RECOVERING, Signal.ENGINE_RECOVERED): State.RUNNING,
}

_ENDINGS: dict[State, frozenset[Cause]] = {
    # What has not started cannot be complete.
    State.QUEUED: frozenset(Cause) - {Cause.COMPLETED},
    State.RUNNING: frozenset(Cause),
    # As with pieces: the last of them may have been the finish.
    State.RECOVERING: frozenset(Cause),
    State.ENDED: frozenset(),
}


class Lifecycle:
    """One stream's state; `cause` is set exactly when it has ended. What the tables do not allow is refused, never an
    exception: an engine may well deliver one more token for a stream that has just been cancelled."""

    __slots__ = ("accepts_output", "cause", "state")

    def __init__(self) -> None:
        self.state = State.QUEUED
        self.cause: Cause | None = None
        self.accepts_output = False
        """Whether a piece may come now: what `step(Signal.PIECE)` would say, without a look-up for every token."""

    def step(self, signal: Signal) -> bool:
        """Take the step if the table has it; say whether it was taken."""
        after = _TABLE.get((self.state, signal))
        if after is None:
            return False
        self._enter(after)
        return True

    def end(self, cause: Cause) -> bool:
        """End with `cause` if the state allows it; say whether that was the end."""
        if cause not in _ENDINGS[self.state]:
            return False
        self._enter(State.ENDED)
        self.cause = cause
        return True

    def _enter(self, state: State) -> None:
        self.state = state
        self.accepts_output = (state, Signal.OUTPUT) in _TABLE


__all__ = ["Lifecycle", "Signal", "State"]
