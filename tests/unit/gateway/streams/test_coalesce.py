from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain import Chunk, Delta, Endpoint, OutputPart
from gateway.protocols.chat import ChatEncoder
from gateway.streams.coalesce import LONGEST_TEXT, merge
from tests.support.engine import chunk_template

DELTAS = st.builds(
    Delta,
    text=st.text(max_size=5),
    tokens=st.integers(0, 4),
    finish_reason=st.none(),
    stop_reason=st.none(),
)
PIECES: st.SearchStrategy[OutputPart] = st.one_of(DELTAS, st.builds(Chunk, payload=st.binary(max_size=3)))


def spelled(pieces: list[OutputPart]) -> list[str | bytes]:
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
def test_merging_keeps_every_text_and_document_in_order_and_counts_every_token(pieces: list[OutputPart]) -> None:
    merged = merge(list(pieces))

    assert spelled(merged) == spelled(pieces)
    assert sum(piece.tokens for piece in merged if isinstance(piece, Delta)) == sum(
        piece.tokens for piece in pieces if isinstance(piece, Delta)
    )


@given(st.lists(PIECES, max_size=20))
def test_no_two_deltas_stand_side_by_side_after_merging(pieces: list[OutputPart]) -> None:
    merged = merge(list(pieces))

    assert not any(isinstance(left, Delta) and isinstance(right, Delta) for left, right in pairwise(merged))


@given(st.lists(DELTAS, min_size=2, max_size=20), st.integers(0, 3))
def test_the_ending_of_what_was_merged_has_no_text(deltas: list[Delta], tokens: int) -> None:
    pieces: list[OutputPart] = [*deltas, Delta("!", tokens, "stop", "END")]
    *texts, ending = merge(pieces)

    assert ending == Delta("", tokens, "stop", "END")
    assert spelled(texts) == spelled(pieces)


def test_two_tokens_are_what_they_would_have_been_if_each_had_left_alone() -> None:
    assert merge([Delta("a", 1), Delta("b", 1, "stop")]) == [Delta("a", 1), Delta("b", 1, "stop")]
    assert merge([Delta("ab", 2), Delta("c", 1, "stop")]) == [Delta("abc", 2), Delta("", 1, "stop")]


def test_tokens_without_text_need_no_piece_before_the_ending() -> None:
    assert merge([Delta("", 1), Delta("", 1), Delta("", 1, "stop")]) == [Delta("", 3, "stop")]


@pytest.mark.parametrize("character", ["a", '"', "\x01", "\u2028", "\U0001f600", "\x85"])
@pytest.mark.parametrize("length", [LONGEST_TEXT - 1, LONGEST_TEXT, LONGEST_TEXT + 1, 5 * LONGEST_TEXT + 7])
@pytest.mark.parametrize("reason", [None, "length"])
def test_no_line_of_a_merged_text_is_too_long_for_gos_scanner(character: str, length: int, reason: str | None) -> None:
    """It takes 64 KiB; the longest way to write a character takes six bytes."""
    pieces: list[OutputPart] = [Delta(character, 1)] * (length - 1)
    merged = merge([*pieces, Delta(character, 1, reason)])
    encoder = ChatEncoder(chunk_template(Endpoint.CHAT, continuous_usage=True, model="m" * 300))
    lines = encoder.encode(merged)

    assert spelled(merged) == [character * length]
    assert sum(piece.tokens for piece in merged if isinstance(piece, Delta)) == length
    assert max(len(b"data: " + line) for line in lines) < 2**16
    texts = [orjson.loads(line)["choices"][0]["delta"]["content"] for line in lines]
    assert "".join(texts) == character * length
    if reason is not None:
        assert texts[-1] == ""


def test_a_single_piece_is_handed_over_as_it_is() -> None:
    """The usual case: the reader is faster than the engine. It must cost nothing."""
    delta = Delta("a", 1)

    assert merge([delta])[0] is delta
    assert merge([]) == []


def test_documents_are_never_joined_and_part_the_deltas_around_them() -> None:
    pieces: list[OutputPart] = [Delta("a", 1), Delta("b", 1), Chunk(b"1"), Chunk(b"2"), Delta("c", 1)]

    assert merge(pieces) == [Delta("ab", 2), Chunk(b"1"), Chunk(b"2"), Delta("c", 1)]
    assert len(pieces) == 5, "the list that came is left alone"
