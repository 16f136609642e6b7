from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.streams.lifecycle import Lifecycle, Signal, State

ALLOWED = {
    (State.QUEUED, Signal.START): State.RUNNING,
    (State.QUEUED, Signal.END): State.ENDED,
    (State.RUNNING, Signal.PIECE): State.RUNNING,
    (State.RUNNING, Signal.END): State.ENDED,
}


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(State, Signal)))
def test_only_the_ways_in_the_table_are_taken(state: State, signal: Signal) -> None:
    """Written out a second time on purpose: a change of the table must be meant."""
    life = Lifecycle()
    life.state = state

    assert life.step(signal) is ((state, signal) in ALLOWED)
    assert life.state is ALLOWED.get((state, signal), state)


@given(st.lists(st.sampled_from(list(Signal))))
def test_whatever_happens_a_stream_ends_at_most_once_and_nothing_comes_after(signals: list[Signal]) -> None:
    life = Lifecycle()
    taken = [signal for signal in signals if life.step(signal)]

    assert taken.count(Signal.END) <= 1
    assert Signal.END not in taken[:-1]
