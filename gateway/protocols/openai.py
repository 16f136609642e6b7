"""The chunks of plain streams: one choice, text only, no parser in play.

They are equal to what vLLM's own generator sends for the same request, field for field and in its order; a test
compares the two over a matrix of request shapes. Everything else (logprobs, tools, reasoning, n > 1) is formatted
by vLLM itself and passes through as a `Chunk`.

The constant parts are laid out once per stream, so that a token costs one JSON string and one join.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from gateway.domain import Chunk, ChunkTemplate, Delta, Endpoint, OutputPart
from gateway.errors import SluiceError
from gateway.protocols.json_text import dumped, escaped

DONE = b"[DONE]"
"""The document that OpenAI clients wait for: after it nothing follows."""


class PassthroughEncoder:
    """The pieces of a stream that has been formatted already."""

    def encode(self, pieces: Iterable[OutputPart]) -> list[bytes]:
        """The documents that they are."""
        return [escaped(piece.payload) for piece in pieces if isinstance(piece, Chunk)]

    def encode_text(self, text: str, tokens: int) -> None:
        """There is no text."""


class Encoder:
    """Turn the pieces of one stream into JSON documents, in order. Holds the count for running usage."""

    def __init__(self, template: ChunkTemplate) -> None:
        chat = template.endpoint is Endpoint.CHAT
        self._frame = template
        self._completion_tokens = 0
        self._drop_empty = template.drop_empty
        self._is_chat = self._role_due = chat
        kind = b"chat.completion.chunk" if chat else b"text_completion"
        self._head = b'{"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            orjson.dumps(template.id),
            kind,
            template.created,
            dumped(template.model),
        )
        self._open = b'{"index":0,"delta":{"content":' if chat else b'{"index":0,"text":'
        self._close = b"}" if chat else b""
        self._fingerprint = (
            b"" if template.fingerprint is None else b',"system_fingerprint":' + orjson.dumps(template.fingerprint)
        )
        self._choice_end = b'"token_ids":null%b}]' % _nulls(template.choice_nulls)
        self._chunk_end = _nulls(template.chunk_nulls) + b"}"
        # A text completion's token chunks name stop_reason and prompt_token_ids; a chat's do not.
        between = b'"token_ids":null}]' if chat else b'"stop_reason":null,"prompt_token_ids":null,%b' % self._choice_end
        self._running = self._close + b',"logprobs":null,"finish_reason":null,' + between
        # All that surrounds the text of a token where nothing else changes from one to the next.
        self._before = self._head + self._open
        self._behind = None if template.continuous_usage else self._running + self._chunk_end

    def encode(self, pieces: Iterable[OutputPart]) -> list[bytes]:
        """The documents for `pieces`; neighbouring deltas have been merged by whoever calls."""
        documents: list[bytes] = []
        for piece in pieces:
            if isinstance(piece, Chunk):
                documents.append(escaped(piece.payload))
            else:
                self._encode_delta(piece, documents)
        return documents

    def encode_text(self, text: str, tokens: int) -> bytes | None:
        """The document for text in the middle of a stream; None if there is none to send."""
        self._completion_tokens += tokens
        if self._drop_empty and not text:
            return None
        said = orjson.dumps(text) if text.isascii() else dumped(text)
        if self._behind is not None:
            return self._before + said + self._behind
        return b"%b%b%b%b%b" % (self._before, said, self._running, self._usage_so_far(), self._chunk_end)

    def _encode_delta(self, delta: Delta, documents: list[bytes]) -> None:
        if self._role_due:
            self._role_due = False
            documents.append(self._role())
        if delta.finish_reason is None:
            document = self.encode_text(delta.text, delta.tokens)
            if document is not None:
                documents.append(document)
            return
        self._completion_tokens += delta.tokens
        documents.append(self._finish(dumped(delta.text), delta.finish_reason, delta.stop_reason))
        if self._frame.include_usage:
            documents.append(b"%b],%b%b}" % (self._head, self._usage(), self._fingerprint))

    def _role(self) -> bytes:
        return b'%b{"index":0,"delta":{"role":%b,"content":""},"logprobs":null,"finish_reason":null}]%b%b}' % (
            self._head,
            escaped(orjson.dumps(self._frame.role)),
            self._usage_so_far(),
            b',"prompt_token_ids":null,"prompt_text":null',
        )

    def _finish(self, text: bytes, reason: str, stop: int | str | None) -> bytes:
        extra = b"" if self._is_chat else b'"prompt_token_ids":null,'
        # The fingerprint rides on a stream's last document, which is the usage chunk if there is one.
        fingerprint = b"" if self._frame.include_usage else self._fingerprint
        said = self._open + text + self._close
        if self._drop_empty and text == b'""':
            said = b'{"index":0,"delta":{}'
        return b'%b%b,"logprobs":null,"finish_reason":%b,"stop_reason":%b,%b%b%b%b%b' % (
            self._head,
            said,
            orjson.dumps(reason),
            escaped(orjson.dumps(stop)),
            extra,
            self._choice_end,
            self._usage_so_far(),
            fingerprint,
            self._chunk_end,
        )

    def _usage_so_far(self) -> bytes:
        if not self._frame.continuous_usage:
            return b""
        # vLLM's running usage of a chat names the details that its final usage leaves out.
        return b"," + self._usage(b',"completion_tokens_details":null' if self._is_chat else b"")

    def _usage(self, details: bytes = b"") -> bytes:
        prompt, completion = self._frame.prompt_tokens, self._completion_tokens
        return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
            prompt,
            prompt + completion,
            completion,
            details,
        )


def _nulls(names: Iterable[str]) -> bytes:
    return b"".join([b",%b:null" % orjson.dumps(name) for name in names])


def encoder(template: ChunkTemplate | None) -> Encoder | PassthroughEncoder:
    """What makes documents of one stream's pieces; without a template its pieces are documents already."""
    return PassthroughEncoder() if template is None else Encoder(template)


def end_documents(error: SluiceError | None) -> list[bytes]:
    """How a stream says that it is over: its finish chunk has been sent, or an error is; then `[DONE]`."""
    return [DONE] if error is None else [escaped(orjson.dumps(error.body())), DONE]


__all__ = ["DONE", "Encoder", "encoder", "end_documents"]
