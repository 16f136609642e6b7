"""Fewer, fuller pieces for a reader who comes late. Pure."""

from __future__ import annotations

from gateway.model import Delta, Piece


def merge(pieces: list[Piece]) -> list[Piece]:
    """Join neighbouring deltas, as vLLM does for a late reader: texts concatenate, the newest ending wins."""
    merged: list[Piece] = []
    run: list[Delta] = []
    for piece in pieces:
        if isinstance(piece, Delta):
            run.append(piece)
        else:
            _close_run(run, merged)
            merged.append(piece)
    _close_run(run, merged)
    return merged


def _close_run(run: list[Delta], into: list[Piece]) -> None:
    if len(run) == 1:
        into.append(run[0])
    elif run:
        last = run[-1]
        text = "".join([delta.text for delta in run])
        into.append(Delta(text, sum([delta.tokens for delta in run]), last.finish_reason, last.stop_reason))
    run.clear()


__all__ = ["merge"]
