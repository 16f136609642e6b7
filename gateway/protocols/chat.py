"""OpenAI's chat completions."""

from __future__ import annotations

import orjson

from gateway.domain import Endpoint
from gateway.protocols.json_text import escaped
from gateway.protocols.openai import ChunkEncoder, OpenAIProtocol


class ChatEncoder(ChunkEncoder):
    """Chunks of a chat, of which the first has the role."""

    object_name = b"chat.completion.chunk"
    open_text = b'{"index":0,"delta":{"content":'
    close_text = b"}"
    text_fields = b'"token_ids":null'
    has_version_fields = False
    # vLLM's running usage of a chat names the details that its final usage leaves out.
    running_usage_details = b',"completion_tokens_details":null'

    def _first(self) -> list[bytes]:
        role = b'%b{"index":0,"delta":{"role":%b,"content":""},"logprobs":null,"finish_reason":null}]%b%b}' % (
            self._head,
            escaped(orjson.dumps(self._template.role)),
            self._running_usage(),
            b',"prompt_token_ids":null,"prompt_text":null',
        )
        return [role]


CHAT = OpenAIProtocol(Endpoint.CHAT, ChatEncoder)
