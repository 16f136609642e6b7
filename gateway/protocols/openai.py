"""The parts that OpenAI's chat and text completions share: chunks of plain streams, and how a stream ends.

A plain stream has one choice and text only, with no parser in play. Its chunks are equal to those of vLLM's own
generator for the same request, field for field and in its order; a test compares the two over a matrix of request
shapes. Everything else (logprobs, tools, reasoning, n > 1) is formatted by vLLM and passes through as a `Chunk`.

The constant parts are laid out once per stream, so that a token costs one JSON string and one join.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from gateway.domain import Chunk, ChunkTemplate, Delta, Endpoint, OutputPart
from gateway.errors import SluiceError
from gateway.protocols import sse
from gateway.protocols.base import Encoder, Framing
from gateway.protocols.json_text import dumped, escaped

DONE = b"[DONE]"
"""The document that OpenAI clients wait for: after it nothing follows."""


class PassthroughEncoder:
    """For a stream whose parts vLLM has formatted."""

    def encode(self, parts: Iterable[OutputPart]) -> list[bytes]:
        return [escaped(part.payload) for part in parts if isinstance(part, Chunk)]

    def encode_text(self, text: str, tokens: int) -> None:
        return None


class ChunkEncoder:
    """Turns the parts of one stream into chunks. Counts tokens, for running usage."""

    object_name: bytes
    open_text: bytes
    """A choice up to its text."""
    close_text = b""
    """What follows the text before the next field of the choice."""
    text_fields: bytes
    """The last fields of a choice in a chunk of text, up to those that depend on vLLM's version."""
    has_version_fields = True
    """Whether a choice in a chunk of text ends with the fields of `ChunkTemplate.choice_nulls`."""
    finish_fields = b""
    running_usage_details = b""

    def __init__(self, template: ChunkTemplate) -> None:
        self._template = template
        self._completion_tokens = 0
        self._drop_empty = template.drop_empty
        self._has_begun = False
        self._head = b'{"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            orjson.dumps(template.id),
            self.object_name,
            template.created,
            dumped(template.model),
        )
        self._fingerprint = (
            b"" if template.fingerprint is None else b',"system_fingerprint":' + orjson.dumps(template.fingerprint)
        )
        self._choice_nulls = _nulls(template.choice_nulls)
        self._chunk_end = _nulls(template.chunk_nulls) + b"}"
        self._after_text = b'%b,"logprobs":null,"finish_reason":null,%b%b}]' % (
            self.close_text,
            self.text_fields,
            self._choice_nulls if self.has_version_fields else b"",
        )
        # All that surrounds the text of a token where nothing else changes from one to the next.
        self._before = self._head + self.open_text
        self._behind = None if template.continuous_usage else self._after_text + self._chunk_end

    def encode(self, parts: Iterable[OutputPart]) -> list[bytes]:
        """The documents for `parts`; the caller has merged neighbouring deltas."""
        documents: list[bytes] = []
        for part in parts:
            if isinstance(part, Chunk):
                documents.append(escaped(part.payload))
            else:
                self._encode_delta(part, documents)
        return documents

    def encode_text(self, text: str, tokens: int) -> bytes | None:
        self._completion_tokens += tokens
        if self._drop_empty and not text:
            return None
        content = orjson.dumps(text) if text.isascii() else dumped(text)
        if self._behind is not None:
            return self._before + content + self._behind
        return b"%b%b%b%b%b" % (self._before, content, self._after_text, self._running_usage(), self._chunk_end)

    def _first(self) -> list[bytes]:
        """The documents before the first text."""
        return []

    def _encode_delta(self, delta: Delta, documents: list[bytes]) -> None:
        if not self._has_begun:
            self._has_begun = True
            documents += self._first()
        if delta.finish_reason is None:
            document = self.encode_text(delta.text, delta.tokens)
            if document is not None:
                documents.append(document)
            return
        self._completion_tokens += delta.tokens
        documents.append(self._finish(dumped(delta.text), delta.finish_reason, delta.stop_reason))
        if self._template.include_usage:
            documents.append(b"%b],%b%b}" % (self._head, self._usage(), self._fingerprint))

    def _finish(self, text: bytes, reason: str, stop: int | str | None) -> bytes:
        # The fingerprint is in a stream's last document, which is the usage chunk if there is one.
        fingerprint = b"" if self._template.include_usage else self._fingerprint
        choice = self.open_text + text + self.close_text
        if self._drop_empty and text == b'""':
            choice = b'{"index":0,"delta":{}'
        return b'%b%b,"logprobs":null,"finish_reason":%b,"stop_reason":%b,%b"token_ids":null%b}]%b%b%b' % (
            self._head,
            choice,
            orjson.dumps(reason),
            escaped(orjson.dumps(stop)),
            self.finish_fields,
            self._choice_nulls,
            self._running_usage(),
            fingerprint,
            self._chunk_end,
        )

    def _running_usage(self) -> bytes:
        if not self._template.continuous_usage:
            return b""
        return b"," + self._usage(self.running_usage_details)

    def _usage(self, details: bytes = b"") -> bytes:
        prompt, completion = self._template.prompt_tokens, self._completion_tokens
        return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
            prompt,
            prompt + completion,
            completion,
            details,
        )


def _nulls(names: Iterable[str]) -> bytes:
    return b"".join([b",%b:null" % orjson.dumps(name) for name in names])


class OpenAIProtocol:
    """A `StreamProtocol` whose clients count bytes and wait for `[DONE]`."""

    ping = None

    def __init__(self, endpoint: Endpoint, chunk_encoder: type[ChunkEncoder]) -> None:
        self.endpoint = endpoint
        self._chunk_encoder = chunk_encoder

    def encoder(self, template: ChunkTemplate | None) -> Encoder:
        return PassthroughEncoder() if template is None else self._chunk_encoder(template)

    def error(self, error: SluiceError) -> bytes:
        return escaped(orjson.dumps(error.body()))

    def end(self, error: SluiceError | None) -> list[bytes]:
        return [DONE] if error is None else [self.error(error), DONE]

    def framing(self, *, is_numbered: bool) -> Framing:
        return sse.numbered if is_numbered else sse.events
