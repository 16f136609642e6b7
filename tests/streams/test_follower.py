from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.model import Cause, Chunk, Delta, Piece
from gateway.streamlog.base import Ended
from gateway.streamlog.memory import PendingLog
from gateway.streams.follower import Follower, merge
from tests.support.facts import Recorder
from tests.support.time import in_virtual_time

DELTAS = st.builds(
    Delta,
    text=st.text(max_size=5),
    tokens=st.integers(0, 4),
    finish_reason=st.none(),
    stop_reason=st.none(),
)
PIECES: st.SearchStrategy[Piece] = st.one_of(DELTAS, st.builds(Chunk, payload=st.binary(max_size=3)))


def spelled(pieces: list[Piece]) -> list[str | bytes]:
    """The content in order: runs of text, and documents."""
    out: list[str | bytes] = []
    for piece in pieces:
        if isinstance(piece, Chunk):
            out.append(piece.payload)
        elif out and isinstance(out[-1], str):
            out[-1] += piece.text
        else:
            out.append(piece.text)
    return out


@given(st.lists(PIECES, max_size=20))
def test_merging_keeps_every_text_and_document_in_order_and_counts_every_token(pieces: list[Piece]) -> None:
    merged = merge(list(pieces))

    assert spelled(merged) == spelled(pieces)
    assert sum(piece.tokens for piece in merged if isinstance(piece, Delta)) == sum(
        piece.tokens for piece in pieces if isinstance(piece, Delta)
    )


@given(st.lists(PIECES, max_size=20))
def test_no_two_deltas_stand_side_by_side_after_merging(pieces: list[Piece]) -> None:
    merged = merge(list(pieces))

    assert not any(isinstance(left, Delta) and isinstance(right, Delta) for left, right in pairwise(merged))


def test_the_ending_of_the_last_delta_wins() -> None:
    assert merge([Delta("a", 1), Delta("b", 2, "stop", "END")]) == [Delta("ab", 3, "stop", "END")]


@in_virtual_time
async def test_a_single_piece_is_handed_over_as_it_is() -> None:
    """The usual case: the reader is faster than the engine. It must cost nothing."""
    log, facts = PendingLog(), Recorder()
    delta = Delta("a", 1)
    log.append(delta)
    batch = await Follower(log, facts).take()

    assert batch.pieces[0] is delta
    assert facts.spared == []


@in_virtual_time
async def test_pieces_that_piled_up_come_joined_and_are_counted() -> None:
    log, facts = PendingLog(), Recorder()
    for text in "abc":
        log.append(Delta(text, 1))
    log.close(Ended(Cause.COMPLETED))
    batch = await Follower(log, facts).take()

    assert batch.pieces == [Delta("abc", 3)]
    assert batch.ended == Ended(Cause.COMPLETED)
    assert facts.spared == [2]


@in_virtual_time
async def test_documents_are_never_joined() -> None:
    log, facts = PendingLog(), Recorder()
    log.append(Chunk(b"1"))
    log.append(Chunk(b"2"))

    assert (await Follower(log, facts).take()).pieces == [Chunk(b"1"), Chunk(b"2")]
    assert facts.spared == []
