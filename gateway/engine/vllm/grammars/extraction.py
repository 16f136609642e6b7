"""Extracts the grammars from a request before it is rendered.

vLLM's tool parser turns tools into a grammar, for which it needs no prompt: here it does so on a copy of the request,
and vLLM repeats it later with the same result.
"""

from __future__ import annotations

import re
from typing import Any

from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

# A body without any of these has no grammar, unless it writes letters as escapes, which no JSON library does.
_GRAMMAR_FIELDS = (b"response_format", b"structured_outputs", b'"tools"', b'"text"', b"output_config")
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")
_SHARED = ("model", "tools", "tool_choice", "parallel_tool_calls", "structured_outputs")
_PLACEHOLDER = [{"role": "user", "content": "x"}]


def may_contain_grammar(body: bytes) -> bool:
    """Whether a body may contain a grammar; for bodies not parsed yet."""
    return any(word in body for word in _GRAMMAR_FIELDS) or _ESCAPED_LETTER.search(body) is not None


def named_grammar(request: Any) -> tuple[str, Any] | None:
    """The field in which the request itself has a grammar, and that grammar."""
    found = request.extract_structured_outputs()
    if found is None or found.all_constraints_none():
        return None
    if isinstance(request, ResponsesRequest):
        return ("structured_outputs" if request.structured_outputs is not None else "text.format"), found
    format_given = request.response_format is not None and request.response_format.type != "text"
    return ("response_format" if format_given else "structured_outputs"), found


def has_tool_grammars(request: Any) -> bool:
    """Whether the tools' schemas can become part of a grammar."""
    tools = getattr(request, "tools", None)
    if not tools or getattr(request, "tool_choice", None) == "none":
        return False
    return (
        request.tool_choice not in ("auto", None)
        or request.parallel_tool_calls is False
        or any(getattr(_function(tool), "strict", None) for tool in tools)
    )


def tool_schemas(request: Any) -> list[Any]:
    return [getattr(_function(tool), "parameters", None) for tool in request.tools]


def _function(tool: Any) -> Any:
    return getattr(tool, "function", tool)


def parser_grammar(renderer: Any, request: Any) -> tuple[str, Any] | None:
    """A field, and the grammar that vLLM's parsers make of the request, which may be that of `named_grammar`.
    `renderer` is vLLM's online renderer."""
    parser = renderer.parser
    if parser is None or isinstance(request, CompletionRequest):
        return None
    choice = getattr(request, "tool_choice", "none")
    if not (request.tools and choice != "none") and not (
        parser.always_adjust_request or parser.reasoning_parser_cls is not None
    ):
        return None
    kwargs = (
        request.build_chat_params(renderer.chat_template, renderer.chat_template_content_format)
        .with_defaults(renderer.default_chat_template_kwargs)
        .chat_template_kwargs
    )
    made = parser(
        renderer.renderer.get_tokenizer(),
        request.tools,
        model_config=renderer.model_config,
        chat_template_kwargs=kwargs,
    ).adjust_request(request=request.model_copy())
    found = made.extract_structured_outputs()
    if found is None or found.all_constraints_none():
        return None
    return ("tools" if request.tools else "response_format"), found


def from_document(path: str, document: dict[str, Any]) -> Any:
    """A request of vLLM's models with the same grammars as a body for its own app at `path`, without the prompt; None
    if the body has no grammar."""
    match path:
        case "/v1/responses":
            return ResponsesRequest.model_validate({**_select(document, "text"), "input": "x"})
        case "/v1/messages":
            names = ("model", "tools", "tool_choice", "output_config")
            given = {name: document[name] for name in names if name in document}
            request = AnthropicMessagesRequest.model_validate(
                {"model": "", "max_tokens": 1, **given, "messages": _PLACEHOLDER}
            )
            return AnthropicServingMessages.to_chat_completion_request(request)
        case "/inference/v1/generate":
            params = document.get("sampling_params")
            found = params.get("structured_outputs") if isinstance(params, dict) else None
            if not isinstance(found, dict):
                return None
            return CompletionRequest.model_validate({"prompt": "x", "structured_outputs": found})
    fields = _select(document, "response_format")
    if "prompt" in document and "messages" not in document:
        return CompletionRequest.model_validate({**fields, "prompt": "x"})
    return ChatCompletionRequest.model_validate({**fields, "messages": _PLACEHOLDER})


def _select(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {one: document[one] for one in (*_SHARED, name) if document.get(one) is not None}
