"""Fewer, fuller parts for a late reader. Pure."""

from __future__ import annotations

from gateway.domain import Delta, OutputPart

LONGEST_TEXT = 10_000
"""Characters of text in one merged part. Each takes at most six bytes in JSON, so that an event stays below 64 KiB, the
longest line that Go's `bufio.Scanner` takes."""


def merge(parts: list[OutputPart]) -> list[OutputPart]:
    """Join neighbouring deltas. An ending stays a part of its own, without text: many clients look only at the finish
    reason of the chunk that has one."""
    merged: list[OutputPart] = []
    run: list[Delta] = []
    for part in parts:
        if isinstance(part, Delta):
            run.append(part)
        else:
            _close_run(run, merged)
            merged.append(part)
    _close_run(run, merged)
    return merged


def _close_run(run: list[Delta], into: list[OutputPart]) -> None:
    last = run[-1] if run else None
    # Two of one token each are what they would have been without a late reader.
    if last is None or len(run) == 1 or (len(run) == 2 and last.finish_reason is not None and run[0].tokens <= 1):
        into.extend(run)
    else:
        text = "".join([delta.text for delta in run])
        tokens = sum([delta.tokens for delta in run])
        if last.finish_reason is None:
            into += split(text, tokens)
        elif text:
            into += split(text, tokens - last.tokens)
            into.append(Delta("", last.tokens, last.finish_reason, last.stop_reason))
        else:
            into.append(Delta("", tokens, last.finish_reason, last.stop_reason))
    run.clear()


def split(text: str, tokens: int) -> list[Delta]:
    """`text` as parts of at most `LONGEST_TEXT` characters; each has its share of the tokens."""
    length, counted = len(text), 0
    if length <= LONGEST_TEXT:
        return [Delta(text, tokens)]
    deltas = []
    for end in range(LONGEST_TEXT, length + LONGEST_TEXT, LONGEST_TEXT):
        share = tokens * min(end, length) // length - counted
        counted += share
        deltas.append(Delta(text[end - LONGEST_TEXT : end], share))
    return deltas
