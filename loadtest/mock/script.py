"""The script of a stream: its actions and the waits between them, with faults. Pure: no clock, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import orjson

from loadtest.mock.faults import Fault, FaultKind
from loadtest.mock.openai_chunks import DONE, ChunkBuilder, error_body

FOREVER_NS = -1
"""A wait that never ends."""
_CHARACTER = "é".encode()
# The pause within a split character: so long that no client finds both halves in one read.
_HALVES_PAUSE_NS = 5_000_000


class Action(NamedTuple):
    """Done `wait_ns` after the previous action (the first one: after arrival)."""

    wait_ns: int
    documents: tuple[bytes, ...] = ()
    tokens: int = 0
    """The number of tokens in the documents; 0 if they are no content."""
    seq: int = 0
    """The number of the first document; the others follow."""
    start: int = 0
    """The position of the first token."""
    content_at: int = 0
    """The index of the document that carries the tokens."""
    is_last: bool = False
    """Whether the answer is complete afterwards."""
    cut: Fault | None = None
    """The connection ends within the first document."""
    in_halves: bool = False
    """Written in two halves, split within a character, with a pause between."""


class StreamTiming(NamedTuple):
    """Waits in ns, numbers of tokens, and the options of the request."""

    ttft_ns: int
    itl_ns: Callable[[], int]
    tokens_per_event: Callable[[], int]
    max_tokens: int
    sends_role: bool
    sends_role_early: bool
    include_usage: bool


def make_actions(chunks: ChunkBuilder, timing: StreamTiming, fault: Fault | None) -> Iterator[Action]:
    """All actions of a stream."""
    actions = _faultless_actions(chunks, timing, fault)
    return actions if fault is None else _with_fault(actions, chunks, fault)


def _faultless_actions(chunks: ChunkBuilder, timing: StreamTiming, fault: Fault | None) -> Iterator[Action]:
    kind = None if fault is None else fault.kind
    seq, sent, wait_ns = 1, 0, timing.ttft_ns
    opening: tuple[bytes, ...] = (chunks.role_chunk(),) if timing.sends_role else ()
    if opening and timing.sends_role_early:
        yield Action(0, opening, 0, seq)
        seq, opening = seq + 1, ()
    while True:
        count = min(timing.tokens_per_event(), timing.max_tokens - sent)
        is_last = sent + count == timing.max_tokens
        finish = "length" if is_last and kind is not FaultKind.NO_FINISH else None
        documents = (*opening, chunks.content_chunk(sent, count, finish))
        if is_last:
            documents += _final_documents(chunks, timing, kind, sent + count)
        yield Action(wait_ns, documents, count, seq, sent, len(opening), is_last=is_last)
        if is_last:
            return
        seq, sent, opening, wait_ns = seq + len(documents), sent + count, (), timing.itl_ns()


def _final_documents(
    chunks: ChunkBuilder, timing: StreamTiming, kind: FaultKind | None, tokens: int
) -> tuple[bytes, ...]:
    """The documents behind the last token."""
    documents: tuple[bytes, ...] = ()
    if kind is FaultKind.TWO_FINISHES:
        documents += (chunks.finish_chunk("stop", tokens),)
    if timing.include_usage and kind is not FaultKind.NO_USAGE:
        documents += (chunks.usage_chunk(tokens + 7 if kind is FaultKind.WRONG_USAGE else tokens),)
    if kind is not FaultKind.NO_DONE:
        documents += (DONE,)
    if kind is FaultKind.AFTER_DONE:
        documents += (chunks.content_chunk(tokens, 1),)
    return documents


def _with_fault(actions: Iterator[Action], chunks: ChunkBuilder, fault: Fault) -> Iterator[Action]:
    """The actions, with the fault after `after` events with tokens."""
    sent = 0
    for act in actions:
        if not act.tokens or sent != fault.after:
            sent += bool(act.tokens)
            yield act
            continue
        sent += 1
        yield from _apply_fault(act, actions, chunks, fault)
        if fault.kind in {FaultKind.CUT, FaultKind.ERROR_EVENT}:
            return


def _apply_fault(action: Action, actions: Iterator[Action], chunks: ChunkBuilder, fault: Fault) -> Iterator[Action]:
    """Replaces `action`; actions taken from `actions` are replaced, too."""

    def with_text(text: bytes) -> bytes:
        return chunks.content_with_text(text, action.start, action.tokens, "length" if action.is_last else None)

    match fault.kind:
        case FaultKind.CUT:
            yield action._replace(documents=action.documents[action.content_at :], tokens=0, cut=fault)
        case FaultKind.ERROR_EVENT:
            error = orjson.dumps(error_body(500, "The engine died, as planned.", code="engine_failed"))
            yield Action(action.wait_ns, (error, DONE), 0, action.seq, is_last=True)
        case FaultKind.STALL:
            pause_ns = FOREVER_NS if fault.seconds is None else action.wait_ns + round(fault.seconds * 1e9)
            yield action._replace(wait_ns=pause_ns)
        case FaultKind.OUT_OF_ORDER if (following := next(actions, None)) is not None:
            # Their numbers change places, too, as if exchanged on the way.
            yield following._replace(wait_ns=action.wait_ns, is_last=False)
            yield action._replace(wait_ns=following.wait_ns, is_last=following.is_last)
        case FaultKind.CROSS_TALK:
            document = action.documents[action.content_at]
            yield _with_document(action, document.replace(chunks.id.encode(), b"cmpl-of-another-stream", 1))
        case FaultKind.WRONG_TOKEN:
            yield _with_document(
                action,
                chunks.content_chunk(action.start, action.tokens, "length" if action.is_last else None, wrong=True),
            )
        case FaultKind.GARBAGE_JSON:
            document = action.documents[action.content_at]
            yield _with_document(action, document[: len(document) // 2])
        case FaultKind.BAD_EVENT:
            yield _with_document(action, b'{"choices":"none"}')
        case FaultKind.HALF_CHARACTER:
            yield _with_document(action, with_text(_CHARACTER[:1]))
            if (following := next(actions, None)) is not None:
                yield _with_document(following, with_text(_CHARACTER[1:]))
        case FaultKind.SPLIT_CHARACTER:
            yield _with_document(action, with_text(_CHARACTER))._replace(in_halves=True)
            yield Action(_HALVES_PAUSE_NS)
        case _:
            yield action


def _with_document(action: Action, document: bytes) -> Action:
    """The action with another document for its tokens."""
    at = action.content_at
    return action._replace(documents=(*action.documents[:at], document, *action.documents[at + 1 :]))
