"""Extracts the grammars from a request before it is rendered.

vLLM's tool parser turns tools into a grammar, for which it needs no prompt: here it does so on a copy of the request,
and vLLM repeats it later with the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
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
        or any(_function(tool).get("strict") for tool in tools)
    )


def tool_schemas(request: Any) -> list[Any]:
    return [_function(tool).get("parameters") for tool in request.tools]


def _function(tool: Any) -> dict[str, Any]:
    inner = getattr(tool, "function", tool)
    return {name: getattr(inner, name, None) for name in ("parameters", "strict")}


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


# Bodies for vLLM's own app.


def from_document(path: str, document: dict[str, Any]) -> Iterator[Any]:
    """Requests of vLLM's models with the same grammars as the body for `path`, without its prompt."""
    yield from _EXTRACTORS.get(path, _chat)(document)


def _select(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: document[name] for name in (*_SHARED, *names) if document.get(name) is not None}


def _chat(document: dict[str, Any]) -> Iterator[Any]:
    fields = _select(document, "response_format")
    if "prompt" in document and "messages" not in document:
        yield CompletionRequest.model_validate({**fields, "prompt": "x"})
    else:
        yield ChatCompletionRequest.model_validate({**fields, "messages": _PLACEHOLDER})


def _responses(document: dict[str, Any]) -> Iterator[Any]:
    yield ResponsesRequest.model_validate({**_select(document, "text"), "input": "x"})


def _messages(document: dict[str, Any]) -> Iterator[Any]:
    whole: dict[str, Any] = {"model": "", "max_tokens": 1}
    for name in ("model", "tools", "tool_choice", "output_config"):
        if name in document:
            whole[name] = document[name]
    request = AnthropicMessagesRequest.model_validate({**whole, "messages": _PLACEHOLDER})
    yield AnthropicServingMessages.to_chat_completion_request(request)


def _generate(document: dict[str, Any]) -> Iterator[Any]:
    params = document.get("sampling_params")
    wanted = params.get("structured_outputs") if isinstance(params, dict) else None
    if isinstance(wanted, dict):
        yield CompletionRequest.model_validate({"prompt": "x", "structured_outputs": wanted})


_EXTRACTORS: dict[str, Callable[[dict[str, Any]], Iterator[Any]]] = {
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/inference/v1/generate": _generate,
}
