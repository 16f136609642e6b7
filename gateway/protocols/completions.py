"""OpenAI's text completions."""

from __future__ import annotations

from gateway.domain import Endpoint
from gateway.protocols.openai import ChunkEncoder, OpenAIProtocol


class CompletionEncoder(ChunkEncoder):
    """Chunks of a text completion."""

    object_name = b"text_completion"
    open_text = b'{"index":0,"text":'
    text_fields = b'"stop_reason":null,"prompt_token_ids":null,"token_ids":null'
    finish_fields = b'"prompt_token_ids":null,'


COMPLETIONS = OpenAIProtocol(Endpoint.COMPLETION, CompletionEncoder)
