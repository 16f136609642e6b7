"""What of vLLM's `test_stream_errors` needs, in one import."""

from __future__ import annotations

from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.exceptions import GenerationError, VLLMNotFoundError, VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from gateway.engine.vllm.http_app import error_normalizer, proxy, running_requests, stream_errors

__all__ = [
    "AnthropicServingMessages",
    "ChatCompletionRequest",
    "EngineDeadError",
    "GenerationError",
    "OpenAIServingChat",
    "OpenAIServingResponses",
    "RequestOutputKind",
    "SamplingParams",
    "VLLMNotFoundError",
    "VLLMValidationError",
    "error_normalizer",
    "proxy",
    "running_requests",
    "stream_errors",
]
