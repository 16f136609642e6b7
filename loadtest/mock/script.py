"""What a stream says, and after which waits: acts, one by one, faults woven in. Nothing here knows time or sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import orjson

from loadtest.mock.faults import Fault, Kind
from loadtest.mock.openai_chunks import DONE, Chunks, error_body

__all__ = ["FOREVER_NS", "Act", "Manner", "script"]

FOREVER_NS = -1
"""A wait that never ends."""
_CHARACTER = "é".encode()
# The pause within a split character: long enough that no client finds both halves in one read.
_HALVES_NS = 5_000_000


class Act(NamedTuple):
    """What is done `wait_ns` after the act before it (the first one: after arrival)."""

    wait_ns: int
    documents: tuple[bytes, ...] = ()
    tokens: int = 0
    """How many tokens the documents carry; 0 if they are no content."""
    seq: int = 0
    """The number of the first document; the others follow."""
    start: int = 0
    """The position of the first token."""
    content_at: int = 0
    """Which document carries the tokens."""
    last: bool = False
    """Whether the answer is then complete."""
    cut: Fault | None = None
    """The connection ends within the first document."""
    halves: bool = False
    """Written in two halves, the cut within a character, with a pause between."""


class Manner(NamedTuple):
    """How one stream speaks: waits in ns, numbers of tokens, and what its client wants to be told."""

    ttft_ns: int
    itl_ns: Callable[[], int]
    tokens_per_event: Callable[[], int]
    max_tokens: int
    role: bool
    early: bool
    include_usage: bool


def script(chunks: Chunks, manner: Manner, fault: Fault | None) -> Iterator[Act]:
    """All acts of a stream."""
    acts = _plain(chunks, manner, fault)
    return acts if fault is None else _spoiled(acts, chunks, fault)


def _plain(chunks: Chunks, manner: Manner, fault: Fault | None) -> Iterator[Act]:
    kind = None if fault is None else fault.kind
    seq, said, wait_ns = 1, 0, manner.ttft_ns
    opening: tuple[bytes, ...] = (chunks.role(),) if manner.role else ()
    if opening and manner.early:
        yield Act(0, opening, 0, seq)
        seq, opening = seq + 1, ()
    while True:
        count = min(manner.tokens_per_event(), manner.max_tokens - said)
        over = said + count == manner.max_tokens
        finish = "length" if over and kind is not Kind.NO_FINISH else None
        documents = (*opening, chunks.content(said, count, finish))
        if over:
            documents += _ending(chunks, manner, kind, said + count)
        yield Act(wait_ns, documents, count, seq, said, len(opening), last=over)
        if over:
            return
        seq, said, opening, wait_ns = seq + len(documents), said + count, (), manner.itl_ns()


def _ending(chunks: Chunks, manner: Manner, kind: Kind | None, said: int) -> tuple[bytes, ...]:
    """What comes behind the last token."""
    documents: tuple[bytes, ...] = ()
    if kind is Kind.TWO_FINISHES:
        documents += (chunks.finish("stop", said),)
    if manner.include_usage and kind is not Kind.NO_USAGE:
        documents += (chunks.usage(said + 7 if kind is Kind.WRONG_USAGE else said),)
    if kind is not Kind.NO_DONE:
        documents += (DONE,)
    if kind is Kind.AFTER_DONE:
        documents += (chunks.content(said, 1),)
    return documents


def _spoiled(acts: Iterator[Act], chunks: Chunks, fault: Fault) -> Iterator[Act]:
    """The acts, with the fault where `after` events with tokens have been said."""
    said = 0
    for act in acts:
        if not act.tokens or said != fault.after:
            said += bool(act.tokens)
            yield act
            continue
        said += 1
        yield from _spoil(act, acts, chunks, fault)
        if fault.kind in {Kind.CUT, Kind.ERROR_EVENT}:
            return


def _spoil(act: Act, acts: Iterator[Act], chunks: Chunks, fault: Fault) -> Iterator[Act]:
    """In place of `act`; what it takes from `acts` it says."""

    def said(text: bytes) -> bytes:
        return chunks.said(text, act.start, act.tokens, "length" if act.last else None)

    match fault.kind:
        case Kind.CUT:
            yield act._replace(documents=act.documents[act.content_at :], tokens=0, cut=fault)
        case Kind.ERROR_EVENT:
            error = orjson.dumps(error_body(500, "The engine died, as the plan says.", code="engine_failed"))
            yield Act(act.wait_ns, (error, DONE), 0, act.seq, last=True)
        case Kind.STALL:
            pause_ns = FOREVER_NS if fault.seconds is None else act.wait_ns + round(fault.seconds * 1e9)
            yield act._replace(wait_ns=pause_ns)
        case Kind.OUT_OF_ORDER if (following := next(acts, None)) is not None:
            # Their numbers change places, too, as if something on the way had exchanged them.
            yield following._replace(wait_ns=act.wait_ns, last=False)
            yield act._replace(wait_ns=following.wait_ns, last=following.last)
        case Kind.CROSS_TALK:
            document = act.documents[act.content_at]
            yield _altered(act, document.replace(chunks.id.encode(), b"cmpl-of-another-stream", 1))
        case Kind.WRONG_TOKEN:
            yield _altered(act, chunks.content(act.start, act.tokens, "length" if act.last else None, wrong=True))
        case Kind.GARBAGE_JSON:
            document = act.documents[act.content_at]
            yield _altered(act, document[: len(document) // 2])
        case Kind.BAD_EVENT:
            yield _altered(act, b'{"choices":"none"}')
        case Kind.HALF_CHARACTER:
            yield _altered(act, said(_CHARACTER[:1]))
            if (following := next(acts, None)) is not None:
                yield _altered(following, said(_CHARACTER[1:]))
        case Kind.SPLIT_CHARACTER:
            yield _altered(act, said(_CHARACTER))._replace(halves=True)
            yield Act(_HALVES_NS)
        case _:
            yield act


def _altered(act: Act, document: bytes) -> Act:
    """The act with another document for its tokens."""
    at = act.content_at
    return act._replace(documents=(*act.documents[:at], document, *act.documents[at + 1 :]))
