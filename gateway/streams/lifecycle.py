"""The states of a stream and the only ways between them. Pure: no IO, no clock, no asyncio.

    QUEUED --START--> RUNNING <--ENGINE_RECOVERED-- RECOVERING
       |                 |   \\------ENGINE_LOST-------^   |
       |                 |                                |
       `--END(cause)-----+------------END(cause)----------+----> ENDED, with its cause

All transitions are in the two tables below.
"""

from __future__ import annotations

from enum import IntEnum, auto

from gateway.domain import Cause


class State(IntEnum):
    QUEUED = auto()
    """At the gate, or being rendered."""
    RUNNING = auto()
    RECOVERING = auto()
    """Its engine has died; the next one continues it."""
    ENDED = auto()


class Signal(IntEnum):
    """An event other than the end."""

    START = auto()
    OUTPUT = auto()
    ENGINE_LOST = auto()
    ENGINE_RECOVERED = auto()


_TABLE: dict[tuple[State, Signal], State] = {
    (State.QUEUED, Signal.START): State.RUNNING,
    (State.RUNNING, Signal.OUTPUT): State.RUNNING,
    (State.RUNNING, Signal.ENGINE_LOST): State.RECOVERING,
    # Output from before the engine's death may still be in a formatter.
    (State.RECOVERING, Signal.OUTPUT): State.RECOVERING,
    (State.RECOVERING, Signal.ENGINE_RECOVERED): State.RUNNING,
}

_ENDINGS: dict[State, frozenset[Cause]] = {
    # A request that has not started cannot be complete.
    State.QUEUED: frozenset(Cause) - {Cause.COMPLETED},
    State.RUNNING: frozenset(Cause),
    # As with output: the last of it may be the finish.
    State.RECOVERING: frozenset(Cause),
    State.ENDED: frozenset(),
}


class Lifecycle:
    """One stream's state; `cause` is set exactly when it has ended. A step that the tables do not allow raises nothing:
    an engine may deliver one more token for a stream that has just been cancelled."""

    __slots__ = ("accepts_output", "cause", "state")

    def __init__(self) -> None:
        self.state = State.QUEUED
        self.cause: Cause | None = None
        self.accepts_output = False
        """Whether `step(Signal.OUTPUT)` would be taken, without a look-up for every token."""

    def step(self, signal: Signal) -> bool:
        """Take the step if the table has it. Returns whether it was taken."""
        after = _TABLE.get((self.state, signal))
        if after is None:
            return False
        self._enter(after)
        return True

    def end(self, cause: Cause) -> bool:
        """End with `cause` if the state allows it. Returns whether it ended now."""
        if cause not in _ENDINGS[self.state]:
            return False
        self._enter(State.ENDED)
        self.cause = cause
        return True

    def _enter(self, state: State) -> None:
        self.state = state
        self.accepts_output = (state, Signal.OUTPUT) in _TABLE
