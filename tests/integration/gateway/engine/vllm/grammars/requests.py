"""Requests with grammars, as vLLM's models."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TEXT_FORMAT = {"type": "json_schema", "name": "x", "schema": SCHEMA}
MESSAGES = [{"role": "user", "content": "x"}]


def tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": SCHEMA, **more}}


def chat(**fields: Any) -> Any:
    return ChatCompletionRequest.model_validate({"messages": MESSAGES, **fields})


def params(**fields: Any) -> Any:
    return SamplingParams(structured_outputs=StructuredOutputsParams(**fields))
