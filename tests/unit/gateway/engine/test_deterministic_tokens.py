"""The tokens of the synthetic engine are ones that the demo model's tokenizer can spell."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demo import MODEL_PATH
from gateway.engine import deterministic_tokens
from gateway.engine.deterministic_tokens import token_at, tokens
from tests.support.deterministic_text import expected_text, tokenizer

WORDS = range(deterministic_tokens.FIRST_WORD, deterministic_tokens.LARGEST + 1)
EMOJI = re.compile("[\U0001f600-\U0001f61f]")

firsts = st.integers(0, 2**18)
positions = st.integers(0, 2**20)


@given(firsts, positions, st.integers(0, 300), st.integers(0, 300))
def test_a_stream_that_is_taken_up_again_goes_on_with_the_same_tokens(
    first: int, start: int, before: int, after: int
) -> None:
    """The prompt and the tokens so far are submitted anew: the first token and all positions stay what they were."""
    whole = tokens(first, start, before + after)

    assert tokens(first, start, before) + tokens(first, start + before, after) == whole


@given(firsts, positions)
def test_tokens_are_words_and_the_bytes_of_emojis_only(first: int, position: int) -> None:
    found = token_at(first, position)

    assert (
        found in WORDS
        or found in deterministic_tokens.EMOJI_HEAD
        or 0 <= found - deterministic_tokens.EMOJI_TAIL < deterministic_tokens.EMOJIS
    )


def test_tokens_are_the_same_in_every_process_and_version() -> None:
    """Clients and engines of different releases must agree."""
    assert tokens(1, 5, 6) == [978, 1123, 1011, 1130, 1047, 1011]
    assert tokens(1, 40, 8) == [1045, 1136, 180, 261, 254, 242, 987, 990]


@pytest.mark.parametrize("token", WORDS)
def test_its_words_are_plain_letters(token: int) -> None:
    assert re.fullmatch(" ?[A-Za-z]+", tokenizer().decode([token]))


def test_its_emojis_are_four_tokens_of_one_byte() -> None:
    for number in range(deterministic_tokens.EMOJIS):
        spelled = [*deterministic_tokens.EMOJI_HEAD, deterministic_tokens.EMOJI_TAIL + number]

        assert tokenizer().decode(spelled) == chr(0x1F600 + number)
        assert all(tokenizer().decode([token]) == "\N{REPLACEMENT CHARACTER}" for token in spelled)


def test_none_of_its_tokens_ends_a_sequence_or_is_special() -> None:
    ours = {
        *WORDS,
        *deterministic_tokens.EMOJI_HEAD,
        *range(deterministic_tokens.EMOJI_TAIL, deterministic_tokens.EMOJI_TAIL + deterministic_tokens.EMOJIS),
    }
    document = json.loads((MODEL_PATH / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((MODEL_PATH / "config.json").read_text(encoding="utf-8"))

    assert not ours & {token["id"] for token in document["added_tokens"]}
    assert config["eos_token_id"] not in ours
    assert deterministic_tokens.LARGEST == max(ours) < config["vocab_size"]


def test_about_one_block_in_eight_holds_an_emoji() -> None:
    blocks = 8000
    text = tokenizer().decode(tokens(1, 0, blocks * deterministic_tokens.BLOCK))

    assert 0.11 < len(EMOJI.findall(text)) / blocks < 0.14
    assert "\N{REPLACEMENT CHARACTER}" not in text, "whole blocks never cut a character"


def test_other_prompts_get_other_answers() -> None:
    """A token of a wrong stream or of a wrong place is noticed almost always."""
    answers = {tuple(tokens(first, start, 8)) for first in range(100) for start in range(100)}

    assert len(answers) == 100 * 100


def test_the_expected_text_leaves_out_a_character_that_is_cut() -> None:
    assert expected_text([1] * 40, 6).endswith("\U0001f60c")
    assert expected_text([1] * 40, 5) == expected_text([1] * 40, 2)
