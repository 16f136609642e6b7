"""The documents of one stream, in vLLM's format. The constant parts are prepared once per stream."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.engine import deterministic_tokens
from loadtest.mock.request_body import RequestBody

DONE = b"[DONE]"


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kinds = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or kind}}


class ChunkBuilder:
    """Builds documents by position. Tokens are those of the synthetic engine (`gateway.engine.deterministic_tokens`),
    so that clients can check them one by one; their text is the position."""

    def __init__(self, request: RequestBody, stream_id: str, model: str, created: int) -> None:
        self.id = stream_id
        self._request = request
        self._model = model
        self._created = created
        self._kind = "chat.completion" if request.chat else "text_completion"
        kind = "chat.completion.chunk" if request.chat else "text_completion"
        head = {"id": stream_id, "object": kind, "created": created, "model": model}
        self._head = orjson.dumps(head)[:-1] + b',"choices":['
        self._open = b'{"index":0,"delta":{"content":"' if request.chat else b'{"index":0,"text":"'
        self._close = b'"}' if request.chat else b'"'

    def role_chunk(self) -> bytes:
        """The first chunk of a chat."""
        delta = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        prompt = b"}"
        if self._request.token_ids:
            # Of a chat's prompt only the first token and the length are known.
            prompt = b',"prompt_token_ids":%b}' % orjson.dumps(
                [self._request.first_token] * self._request.prompt_tokens
            )
        return self._head + delta + prompt

    def content_chunk(self, start: int, count: int, finish: str | None = None, *, wrong: bool = False) -> bytes:
        """Tokens `start` to `start + count`. `wrong`: other ids than the right ones."""
        return self.content_with_text(self.text(start, count), start, count, finish, wrong=wrong)

    def text(self, start: int, count: int) -> bytes:
        return b"".join([b" %d" % position for position in range(start, start + count)])

    def content_with_text(
        self, text: bytes, start: int, count: int, finish: str | None = None, *, wrong: bool = False
    ) -> bytes:
        """The document of a text that is already escaped for JSON."""
        ids = b""
        if self._request.token_ids:
            numbers = self._tokens(start, count)
            ids = b',"token_ids":' + orjson.dumps([number + 1 for number in numbers] if wrong else numbers)
        usage = b"," + self._usage(start + count) if self._request.continuous_usage else b""
        end = b"null" if finish is None else orjson.dumps(finish)
        fields = (self._head, self._open, text, self._close, end, ids, usage)
        return b'%b%b%b%b,"logprobs":null,"finish_reason":%b%b}]%b}' % fields

    def finish_chunk(self, reason: str, tokens: int) -> bytes:
        """A document without content that ends the stream."""
        return self.content_with_text(b"", tokens, 0, reason)

    def usage_chunk(self, tokens: int) -> bytes:
        """The last document of a stream whose client requested its usage."""
        return b"%b],%b}" % (self._head, self._usage(tokens))

    def full_response(self, tokens: int) -> bytes:
        """The answer to a request that is not streamed."""
        text = self.text(0, tokens).decode()
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if self._request.chat else {"text": text}
        if self._request.token_ids:
            choice["token_ids"] = self._tokens(0, tokens)
        head = {"id": self.id, "object": self._kind, "created": self._created, "model": self._model}
        return orjson.dumps(head | {"choices": [choice]})[:-1] + b",%b}" % self._usage(tokens)

    def _tokens(self, start: int, count: int) -> list[int]:
        return deterministic_tokens.tokens(self._request.first_token, self._request.prompt_tokens + start, count)

    def _usage(self, tokens: int) -> bytes:
        prompt = self._request.prompt_tokens
        return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (
            prompt,
            prompt + tokens,
            tokens,
        )
