"""Parses the bodies of our two endpoints into vLLM's own request models."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from gateway.domain import ChunkTemplate, Endpoint, RequestStats
from gateway.engine.vllm import error_mapping
from gateway.engine.vllm.bounded_validation import BoundedValidator, to_client_error
from gateway.engine.vllm.http_app.document_reader import DocumentReader
from gateway.engine.vllm.http_app.proxy import Submission

_MODELS: dict[Endpoint, Any] = {Endpoint.CHAT: ChatCompletionRequest, Endpoint.COMPLETION: CompletionRequest}
_validator = cache(BoundedValidator)


@dataclass(frozen=True, slots=True)
class VllmCall:
    """A validated request of vLLM's own model."""

    endpoint: Endpoint
    request: Any
    stream: bool
    slots: int


@dataclass(frozen=True, slots=True)
class VllmPrepared:
    """A rendered request. Exactly one of `submission` (plain) and `chunks` (vLLM's generator) is set for a stream;
    neither is for a whole answer, which vLLM renders and generates in one go."""

    call: VllmCall
    stats: RequestStats
    raw: Any
    template: ChunkTemplate | None = None
    submission: Submission | None = None
    chunks: AsyncGenerator[str, None] | None = None


def read_request(endpoint: Endpoint, body: bytes, documents: DocumentReader) -> VllmCall:
    """Raises ClientError that names the field."""
    document = documents.read_object(body)
    try:
        request = _validator(_MODELS[endpoint])(document)
    except ValidationError as error:
        raise to_client_error(error) from None
    except Exception as error:
        # vLLM's own validators raise, too, and some fail on values of unexpected types.
        raise error_mapping.from_validator(error, _MODELS[endpoint], document) from None
    return VllmCall(endpoint, request, bool(request.stream), max(1, request.n or 1) * _prompt_count(request))


def _prompt_count(request: Any) -> int:
    """How many prompts a request has: a list of texts or of token lists is several."""
    prompt = getattr(request, "prompt", None)
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1
