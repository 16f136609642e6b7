"""Which requests are plain, and take the fast path: one choice of text, and no parser has to read it.

vLLM's serving objects do everything else about a request: validation, LoRA lookup, templates, sampling parameters.
Only their stream generators are overridden here, and only to return a `ChunkTemplate` instead of a generator when the
chunks of the stream follow from the template and the deltas alone. For all other requests vLLM's own generator runs
unchanged.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from vllm.entrypoints.openai.chat_completion import protocol as chat_protocol
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion import protocol as completion_protocol
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.utils.api_utils import should_include_usage
from vllm.parser.abstract_parser import DelegatingParser

from gateway.domain import ChunkTemplate, Endpoint
from gateway.engine.base import CURRENT_STATS
from gateway.engine.vllm.output.whole_answers import chat_logprobs, completion_logprobs


def install(state: Any) -> None:
    """Override the stream generators of the two serving objects in vLLM's app state, if the model generates.

    Other handlers (batch, Anthropic) have serving objects of their own, which stay as they are; that of the Responses
    API checks its parameters earlier.
    """
    if getattr(state, "openai_serving_chat", None) is not None:
        state.openai_serving_chat.__class__ = _Chat
    if getattr(state, "openai_serving_completion", None) is not None:
        state.openai_serving_completion.__class__ = _Completion
    if getattr(state, "openai_serving_responses", None) is not None:
        state.openai_serving_responses.__class__ = _Responses


class _Chat(OpenAIServingChat):  # type: ignore[misc,unused-ignore]
    def chat_completion_stream_generator(self, request: Any, results: Any, request_id: str, *a: Any, **kw: Any) -> Any:
        model = a[0] if a else kw["model_name"]
        if (
            _is_for_our_endpoint()
            and _is_unparsed(self.parser_cls, request)
            and _is_plain(self, request)
            and not request.return_prompt_text
        ):
            role = self.get_chat_request_role(request)
            template = _template(self, request, Endpoint.CHAT, request_id, model, role)
            # A parser that has nothing to parse makes no chunk of tokens without text.
            return replace(template, drop_empty=self.parser_cls is not None)
        return super().chat_completion_stream_generator(request, results, request_id, *a, **kw)

    def _create_chat_logprobs(self, token_ids: Any, top_logprobs: Any, *a: Any, **kw: Any) -> Any:
        make = super()._create_chat_logprobs
        return make(token_ids, top_logprobs, *a, **kw) if a else chat_logprobs(make, token_ids, top_logprobs, **kw)


class _Completion(OpenAIServingCompletion):  # type: ignore[misc,unused-ignore]
    def completion_stream_generator(
        self, request: Any, engine_inputs: list[Any], results: Any, request_id: str, *a: Any, **kw: Any
    ) -> Any:
        created, model = (*a, *(kw[name] for name in ("created_time", "model_name") if name in kw))[:2]
        if _is_for_our_endpoint() and len(engine_inputs) == 1 and _is_plain(self, request):
            return _template(self, request, Endpoint.COMPLETION, request_id, model, None, created)
        return super().completion_stream_generator(request, engine_inputs, results, request_id, *a, **kw)

    def _create_completion_logprobs(self, token_ids: Any, top_logprobs: Any, *a: Any, **kw: Any) -> Any:
        make = super()._create_completion_logprobs
        return (
            make(token_ids, top_logprobs, *a, **kw) if a else completion_logprobs(make, token_ids, top_logprobs, **kw)
        )


class _Responses(OpenAIServingResponses):  # type: ignore[misc,unused-ignore]
    def _generate_with_builtin_tools(self, *args: Any, **kwargs: Any) -> Any:
        """Check the sampling parameters first, while an error can be an HTTP status: vLLM's generator checks them when
        two events are out, and a background response is queued."""
        self.engine_client.check_params(kwargs["sampling_params"])
        return super()._generate_with_builtin_tools(*args, **kwargs)


def _is_for_our_endpoint() -> bool:
    """Whether our endpoint calls, and not vLLM's `/invocations`, which uses the same serving objects: requests of
    vLLM's own app have their stats in the context."""
    return CURRENT_STATS.get() is None


def _is_unparsed(parser: Any, request: Any) -> bool:
    """Whether no parser reads the text: none is configured, or only a tool parser that this request does not use.
    vLLM's standard parser then passes the text through; parsers with steps of their own may not."""
    if parser is None:
        return True
    return (
        request.tool_choice == "none"
        and parser.reasoning_parser_cls is None
        and parser.tool_parser_cls is not None
        and not parser.tool_parser_cls.engine_based_streaming
        and parser.parse_delta is DelegatingParser.parse_delta
        and parser._extract_tool_calls_streaming is DelegatingParser._extract_tool_calls_streaming
    )


def _is_plain(serving: Any, request: Any) -> bool:
    """Whether the chunks need no more than text and token counts. For both endpoints."""
    return not (
        (request.n or 1) > 1
        # A number in completions (0 counts), a flag in chats.
        or not (request.logprobs is None or request.logprobs is False)
        or request.echo
        or request.return_token_ids
        or request.use_beam_search
        or request.prompt_logprobs
        or getattr(request, "return_tokens_as_token_ids", None)
        # Since vLLM 0.33.
        or getattr(request, "return_weight_versions", None)
        or serving.enable_prompt_tokens_details
        or serving.enable_per_request_metrics
        or getattr(serving, "enable_log_outputs", False)
        # Speculative decoding adds acceptance figures to the usage chunk.
        or serving.engine_client.vllm_config.speculative_config is not None
    )


# Fields that vLLM 0.33 has added to its chunks, each the last of its model; 0.32 has none of them.
_ADDED_FIELDS: dict[Endpoint, dict[str, tuple[Any, str]]] = {
    Endpoint.CHAT: {
        "choice_nulls": (chat_protocol.ChatCompletionResponseStreamChoice, "weight_versions"),
        "chunk_nulls": (chat_protocol.ChatCompletionStreamResponse, "kv_transfer_params"),
    },
    Endpoint.COMPLETION: {
        "choice_nulls": (completion_protocol.CompletionResponseStreamChoice, "weight_versions"),
        "chunk_nulls": (completion_protocol.CompletionStreamResponse, "kv_transfer_params"),
    },
}
_NULLS: dict[Endpoint, dict[str, tuple[str, ...]]] = {
    endpoint: {name: (field,) if field in model.model_fields else () for name, (model, field) in added.items()}
    for endpoint, added in _ADDED_FIELDS.items()
}


def _template(
    serving: Any, request: Any, endpoint: Endpoint, request_id: str, model: str, role: str | None, created: int = 0
) -> ChunkTemplate:
    include, continuous = should_include_usage(request.stream_options, serving.enable_force_include_usage)
    return ChunkTemplate(
        id=request_id,
        created=created or int(time.time()),
        model=model,
        role=role,
        fingerprint=serving.system_fingerprint,
        include_usage=bool(include),
        continuous_usage=bool(continuous),
        drop_empty=False,
        # Set by the caller, which has the rendered prompt.
        prompt_tokens=0,
        **_NULLS[endpoint],
    )
