from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.model import Chunk, Delta, Piece
from gateway.streams.merging import merge

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


def test_a_single_piece_is_handed_over_as_it_is() -> None:
    """The usual case: the reader is faster than the engine. It must cost nothing."""
    delta = Delta("a", 1)

    assert merge([delta])[0] is delta
    assert merge([]) == []


def test_documents_are_never_joined_and_part_the_deltas_around_them() -> None:
    pieces: list[Piece] = [Delta("a", 1), Delta("b", 1), Chunk(b"1"), Chunk(b"2"), Delta("c", 1)]

    assert merge(pieces) == [Delta("ab", 2), Chunk(b"1"), Chunk(b"2"), Delta("c", 1)]
    assert len(pieces) == 5, "the list that came is left alone"
