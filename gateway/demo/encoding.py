"""Conversations as rows of tokens, and rows as the tensors of a training step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from gateway.demo.corpus import Corpus, Dialogue
from gateway.demo.tokenizer import FIRST_PLAIN_TOKEN, VOCAB_SIZE

IGNORED_LABEL = -100  # PyTorch's label for a token without loss
BATCH_TOKENS = 6144
# Tokens, most turns, share with tools. The hardest task is copying a city into a call, which needs very many examples:
# hence many short rows with tools.
SHORT_ROWS = ((64, 1, 0.0), (112, 1, 0.85), (160, 1, 0.85), (192, 3, 0.1), (320, 3, 0.4))
# The second part of the training: answers after a long story.
LONG_ROWS = ((64, 1, 0.0), (160, 1, 0.85), (320, 3, 0.4), (448, 3, 0.1), (448, 3, 0.1))
LONG_SHARE = 0.4
PLAIN_TEXT_SHARE = 0.05
NOISE = 0.03  # share of the user's tokens that are replaced by random ones, against unknown words

Row = tuple[list[int], list[int]]
RowKinds = tuple[tuple[int, int, float], ...]


class Encoder:
    """Renders conversations with the chat template and labels the assistant's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._begin, self._end = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])

    def prompt(self, dialogue: Dialogue) -> str:
        text: str = self._tokenizer.apply_chat_template(
            dialogue.messages[:-1],
            tools=dialogue.tools,
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=dialogue.thinking,
        )
        return text

    def row(self, dialogue: Dialogue) -> Row:
        prompt = self.prompt(dialogue)
        text = prompt + dialogue.messages[-1]["content"] + "<|end|>"
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        chosen_from = len(prompt) + len(dialogue.given)
        labels, is_assistant = [], False
        for token, (at, _) in zip(ids, encoded["offset_mapping"], strict=True):
            counts = is_assistant and not len(prompt) <= at < chosen_from
            labels.append(token if counts else IGNORED_LABEL)
            is_assistant = token == self._begin or (is_assistant and token != self._end)
        return ids, labels

    def last_answer_row(self, dialogue: Dialogue) -> Row:
        """As `row`, with labels for the last answer only."""
        ids, labels = self.row(dialogue)
        start = len(ids) - ids[::-1].index(self._begin)
        return ids, [IGNORED_LABEL] * start + labels[start:]

    def plain_row(self, prompt: str, continuation: str) -> Row:
        before, after = self._ids("<|bos|>" + prompt), self._ids(continuation + "<|end|>")
        return before + after, [IGNORED_LABEL] * len(before) + after

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def batches(
    corpus: Corpus, encoder: Encoder, rng: random.Random, kinds: RowKinds, json_share: float = 0.0
) -> Iterator[list[Row]]:
    """Endless batches of rows of similar length. Many rows are cut, because their first words are the hard part."""
    long_share = LONG_SHARE if kinds is LONG_ROWS else 0.0
    while True:
        limit, turns, tool_share = rng.choice(kinds)
        rows: list[Row] = []
        while len(rows) < BATCH_TOKENS // limit:
            kind = rng.random()
            if kind < PLAIN_TEXT_SHARE:
                ids, labels = encoder.plain_row(*corpus.plain_text(rng))
            elif kind > 1 - tool_share:
                ids, labels = encoder.row(corpus.tool_dialogue(rng, rng.randint(1, min(turns, 2)), json_share))
            else:
                ids, labels = encoder.row(corpus.dialogue(rng, rng.randint(1, turns), long_share, json_share))
                ids = [with_noise(token, label, rng) for token, label in zip(ids, labels, strict=True)]
            if any(label != IGNORED_LABEL for label in labels[:limit]):
                rows.append((ids[:limit], labels[:limit]))
        yield rows


def with_noise(token: int, label: int, rng: random.Random) -> int:
    """The token, or sometimes a random one, if it is the user's and no special token."""
    noisy = label == IGNORED_LABEL and token >= FIRST_PLAIN_TOKEN and rng.random() < NOISE
    return rng.randrange(FIRST_PLAIN_TOKEN, VOCAB_SIZE - 4) if noisy else token


def tensors(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and their next tokens. Attention is causal, so padding at the end needs no mask."""
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    targets = torch.tensor([labels[1:] + [IGNORED_LABEL] * (width - len(labels) + 1) for _, labels in rows])
    return inputs, targets
