"""The contract of a protocol: how one kind of client is spoken to.

A stream carries its protocol. To add one: a module here, and a path in the router of each transport that offers it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.domain import ChunkTemplate, Endpoint, OutputPart
from gateway.errors import SluiceError

Framing = Callable[[list[bytes], int], bytes]
"""From documents in order, and the number of the first, to Server-Sent Events."""


class Encoder(Protocol):
    """Makes the documents of one stream."""

    def encode(self, parts: Iterable[OutputPart]) -> list[bytes]:
        """The documents of `parts`, in order."""

    def encode_text(self, text: str, tokens: int) -> bytes | None:
        """The document of a text in the middle of a stream; None if such a text has no document."""


class StreamProtocol(Protocol):
    """One kind of client. The documents are without framing, which belongs to a transport."""

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint whose requests and answers are of this protocol."""

    @property
    def ping(self) -> bytes | None:
        """The document that keeps a silent stream alive, for clients that count events. None: they count bytes, and the
        transport sends something that is no event."""

    def encoder(self, template: ChunkTemplate | None) -> Encoder:
        """An encoder for one stream; without a template the parts of that stream are documents already."""

    def error(self, error: SluiceError) -> bytes:
        """The document of an error in a stream that has begun."""

    def end(self, error: SluiceError | None) -> list[bytes]:
        """The documents with which a stream ends: well, or with an error."""

    def framing(self, *, is_numbered: bool) -> Framing:
        """Server-Sent Events of this protocol, with the number of each event as its id or without ids."""
