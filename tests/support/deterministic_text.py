"""The text that the synthetic engine's tokens become, for clients that see only text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from gateway.demo import MODEL_PATH
from gateway.engine import deterministic_tokens


@cache
def tokenizer() -> Any:
    """The tokenizer of the demo model."""
    return Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))


def expected_text(prompt_token_ids: Sequence[int], count: int) -> str:
    """The text of `count` tokens after this prompt. A character whose last bytes are missing is never sent."""
    ids = deterministic_tokens.tokens(prompt_token_ids[0], len(prompt_token_ids), count)
    text: str = tokenizer().decode(ids)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")
