from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import Cause
from gateway.streams import lifecycle
from gateway.streams.lifecycle import Lifecycle, Signal, State

ALLOWED = {
    (State.QUEUED, Signal.START): State.RUNNING,
    (State.RUNNING, Signal.OUTPUT): State.RUNNING,
    (State.RUNNING, Signal.ENGINE_LOST): State.RECOVERING,
    (State.RECOVERING, Signal.OUTPUT): State.RECOVERING,
    (State.RECOVERING, Signal.ENGINE_RECOVERED): State.RUNNING,
}


def standing_in(state: State) -> Lifecycle:
    """A life that has come so far, by the shortest way."""
    life = Lifecycle()
    ways: dict[State, tuple[Signal, ...]] = {
        State.RUNNING: (Signal.START,),
        State.RECOVERING: (Signal.START, Signal.ENGINE_LOST),
    }
    for signal in ways.get(state, ()):
        assert life.step(signal)
    if state is State.ENDED:
        assert life.end(Cause.CANCELLED)
    assert life.state is state
    return life


def test_a_life_begins_in_the_queue_without_a_cause() -> None:
    life = Lifecycle()

    assert (life.state, life.cause) == (State.QUEUED, None)


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(State, Signal)))
def test_only_the_ways_in_the_table_are_taken(state: State, signal: Signal) -> None:
    """Written out a second time on purpose: a change of the table must be meant."""
    life = standing_in(state)
    cause = life.cause

    assert life.step(signal) is ((state, signal) in ALLOWED)
    assert life.state is ALLOWED.get((state, signal), state)
    assert life.cause is cause


@pytest.mark.parametrize(("state", "cause"), list(itertools.product(State, Cause)))
def test_every_cause_ends_every_state_once_but_what_has_not_started_is_never_complete(
    state: State, cause: Cause
) -> None:
    life = standing_in(state)
    before = life.cause
    may = state is not State.ENDED and (state, cause) != (State.QUEUED, Cause.COMPLETED)

    assert life.end(cause) is may
    assert (life.state, life.cause) == ((State.ENDED, cause) if may else (state, before))


@given(st.lists(st.sampled_from([*Signal, *Cause])))
def test_whatever_happens_a_stream_ends_at_most_once_and_nothing_comes_after(acts: list[Signal | Cause]) -> None:
    life = Lifecycle()
    taken = [act for act in acts if (life.step(act) if isinstance(act, Signal) else life.end(act))]
    ends = [act for act in taken if isinstance(act, Cause)]

    assert len(ends) <= 1
    assert not any(isinstance(act, Cause) for act in taken[:-1])
    assert life.cause is (ends[0] if ends else None)
    assert (life.state is State.ENDED) is bool(ends)


def test_the_drawing_at_the_top_equals_the_table() -> None:
    """Every arrow between two states is drawn, and no other is; steps that stay where they are need no arrow."""
    top, below, _, bottom = re.findall(r"^    .+", lifecycle.__doc__ or "", re.M)
    columns = {match.start(): match[0] for match in re.finditer("|".join(State.__members__), top)}

    def above(column: int) -> str:
        return columns[max(start for start in columns if start <= column)]

    drawn = set(re.findall(r"([A-Z]+) -+([A-Z_]+)-+> [A-Z]+", top)) | {
        (source, signal) for signal, source in re.findall(r"<-+([A-Z_]+)-+ ([A-Z]+)", top)
    }
    under = re.search(r"\\-+([A-Z_]+)-+\^", below)
    assert under is not None
    drawn.add((above(under.start()), under[1]))

    assert drawn == {(before.name, signal.name) for (before, signal), after in ALLOWED.items() if before is not after}
    assert above(under.end() - 1) == "RECOVERING"
    assert [above(match.start()) for match in re.finditer(r"[`+]", bottom)] == ["QUEUED", "RUNNING", "RECOVERING"]
    assert bottom.count("END(cause)") == 2
    assert bottom.endswith("> ENDED, with its cause")
