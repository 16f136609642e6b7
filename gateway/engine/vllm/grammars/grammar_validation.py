"""Replaces vLLM's validation of grammars, because it compiles them on the event loop.

vLLM compiles a grammar, or walks its schema, where it validates a request: in the request models' validators, in the
tool parsers, and in AsyncLLM's input processor. All of these call the functions that are replaced here by look-ups in
the checker process's results: an unknown grammar passes, because it is checked before its request reaches the engine; a
known one is accepted or refused by its result.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.structured_output import (
    backend_guidance,
    backend_lm_format_enforcer,
    backend_outlines,
    backend_xgrammar,
)
from vllm.v1.structured_output.utils import choice_as_grammar

from gateway.engine.vllm.grammars.backends import CONSTRAINT_FIELDS
from gateway.engine.vllm.grammars.check_results import CheckResult

LEFT_TO_VLLM = CheckResult("any")
"""The result of a constraint that vLLM refuses without compiling."""

_IS_EARLY: ContextVar[bool] = ContextVar("sluice_early", default=False)
_original_validate = SamplingParams._validate_structured_outputs


def extract_constraint(params: Any) -> dict[str, Any]:
    """The fields that are set in vLLM's StructuredOutputsParams; {} if none."""
    return {name: value for name in CONSTRAINT_FIELDS if (value := getattr(params, name, None)) is not None}


def replace_validators(find_result: Callable[[Mapping[str, Any]], CheckResult | None]) -> None:
    """Replace vLLM's validators in this process by look-ups with `find_result`, which returns None for a constraint
    that has not been checked."""

    def look_up(params: Any) -> CheckResult | None:
        constraint = extract_constraint(params.structured_outputs)
        return find_result(constraint) if constraint else LEFT_TO_VLLM

    def validate(name: str, params: Any) -> None:
        if params.structured_outputs is None:
            return
        result = look_up(params)
        if result is None or result is LEFT_TO_VLLM:
            return
        if result.backend is None:
            raise VLLMValidationError(f"The grammar {result.message}")
        if result.backend != name:
            raise VLLMValidationError("The grammar needs another backend.")

    def validate_xgrammar(params: Any) -> None:
        validate("xgrammar", params)
        # vLLM's own does this, too, because xgrammar has no choices.
        outputs = params.structured_outputs
        if outputs is not None and outputs.choice:
            outputs.grammar, outputs.choice = choice_as_grammar(outputs.choice), None

    def validate_guidance(params: Any, tokenizer: Any = None) -> None:
        validate("guidance", params)

    def is_for_outlines(schema: Any) -> bool:
        result = find_result({"json": schema})
        return result is not None and result.backend == "outlines"

    def verify(self: Any, model_config: Any, structured_outputs_config: Any, tokenizer: Any) -> None:
        # Refuses a grammar that has not been checked; then vLLM's own runs.
        if self.structured_outputs is not None and structured_outputs_config is not None and look_up(self) is None:
            if _IS_EARLY.get():
                return
            raise VLLMValidationError(
                "This way of asking for structured outputs is not supported.", parameter="structured_outputs"
            )
        _original_validate(self, model_config, structured_outputs_config, tokenizer)

    backend_xgrammar.validate_xgrammar_grammar = validate_xgrammar
    backend_guidance.validate_guidance_grammar = validate_guidance
    backend_guidance.has_guidance_unsupported_json_features = is_for_outlines
    backend_outlines.validate_structured_output_request_outlines = lambda params: validate("outlines", params)
    backend_lm_format_enforcer.validate_structured_output_request_lm_format_enforcer = lambda params: validate(
        "lm-format-enforcer", params
    )
    SamplingParams._validate_structured_outputs = verify


def check_every_request(llm: Any, check: Callable[[Any], Awaitable[None]]) -> None:
    """Replaces `add_request` of this AsyncLLM, to `check` the sampling parameters of every request with a grammar,
    because it may reach the engine on a path without an earlier check."""
    add = llm.add_request

    async def add_request(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(params, "structured_outputs", None) is not None:
            await check(params)
        return await add(request_id, prompt, params, *args, **kwargs)

    llm.add_request = add_request


def make_params_check(llm: Any, supported_tasks: Any) -> Callable[[Any], None]:
    """A function that raises vLLM's error about sampling parameters. vLLM checks them when a request is added to the
    engine, and some of its streams have begun by then."""
    processor = llm.input_processor

    def verify(params: Any) -> None:
        if not isinstance(params, SamplingParams):
            return
        token = _IS_EARLY.set(True)
        try:
            if params.structured_outputs is not None:
                # vLLM modifies both.
                params = copy.copy(params)
                params.structured_outputs = copy.copy(params.structured_outputs)
            processor._validate_params(params, supported_tasks)
        finally:
            _IS_EARLY.reset(token)

    return verify
