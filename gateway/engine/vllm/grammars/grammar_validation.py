"""vLLM's validation of grammars, replaced: what the checker process has found takes the place of compiling in our loop.

vLLM compiles a grammar where it validates a request, which is on the event loop: in the request models' validators, in
the tool parsers, and in AsyncLLM's input processor. All of them call the functions that are replaced here, so that none
computes: an unknown grammar passes, because it is checked before its request reaches the engine, and a known one is
taken or refused as its verdict says.

Replaced, and nothing else of vLLM is:
- `backend_xgrammar.validate_xgrammar_grammar`, `backend_guidance.validate_guidance_grammar`,
  `backend_guidance.has_guidance_unsupported_json_features`,
  `backend_outlines.validate_structured_output_request_outlines`,
  `backend_lm_format_enforcer.validate_structured_output_request_lm_format_enforcer`: compile, or walk the schema;
- `SamplingParams._validate_structured_outputs`: refuses a grammar that nobody has checked; then vLLM's own runs;
- `AsyncLLM.add_request` of our engine: the last place where a grammar can be checked, for those that came by ways that
  we do not know.
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

from gateway.engine.vllm.grammars.backends import FIELDS
from gateway.engine.vllm.grammars.check_results import Verdict

Known = Callable[[Mapping[str, Any]], Verdict | None]
"""What is known about a constraint."""

LEFT_TO_VLLM = Verdict("any")
"""Of what vLLM refuses without compiling it."""

_EARLY: ContextVar[bool] = ContextVar("sluice_early", default=False)
_vllms_own = SamplingParams._validate_structured_outputs


def extract_constraint(params: Any) -> dict[str, Any]:
    """What vLLM's StructuredOutputsParams ask for; {} if nothing."""
    return {name: value for name in FIELDS if (value := getattr(params, name, None)) is not None}


def replace_validators(known: Known) -> None:
    """Replace vLLM's validators in this process by look-ups in what is `known`."""

    def look(params: Any) -> Verdict | None:
        wanted = extract_constraint(params.structured_outputs)
        return known(wanted) if wanted else LEFT_TO_VLLM

    def validate(names: tuple[str, ...], params: Any) -> None:
        if params.structured_outputs is None:
            return
        verdict = look(params)
        if verdict is None or verdict is LEFT_TO_VLLM:
            return
        if verdict.backend is None:
            raise VLLMValidationError(f"The grammar {verdict.message}")
        if not verdict.backend.startswith(names):
            raise VLLMValidationError("The grammar needs another backend.")

    def validate_xgrammar(params: Any) -> None:
        validate(("xgrammar",), params)
        # vLLM's own does this, too; there xgrammar has no choices.
        wanted = params.structured_outputs
        if wanted is not None and wanted.choice:
            wanted.grammar, wanted.choice = choice_as_grammar(wanted.choice), None

    def validate_guidance(params: Any, tokenizer: Any = None) -> None:
        validate(("guidance",), params)

    def is_for_outlines(schema: Any) -> bool:
        verdict = known({"json": schema})
        return verdict is not None and verdict.backend == "outlines"

    def verify(self: Any, model_config: Any, structured_outputs_config: Any, tokenizer: Any) -> None:
        wanted = self.structured_outputs
        if wanted is not None and structured_outputs_config is not None and look(self) is None:
            if _EARLY.get():
                return
            raise VLLMValidationError(
                "This way of asking for structured outputs is not supported.", parameter="structured_outputs"
            )
        _vllms_own(self, model_config, structured_outputs_config, tokenizer)

    backend_xgrammar.validate_xgrammar_grammar = validate_xgrammar
    backend_guidance.validate_guidance_grammar = validate_guidance
    backend_guidance.has_guidance_unsupported_json_features = is_for_outlines
    backend_outlines.validate_structured_output_request_outlines = lambda params: validate(("outlines",), params)
    backend_lm_format_enforcer.validate_structured_output_request_lm_format_enforcer = lambda params: validate(
        ("lm-format-enforcer",), params
    )
    SamplingParams._validate_structured_outputs = verify


def check_every_request(llm: Any, check: Callable[[Any], Awaitable[None]]) -> None:
    """Have `check` look at the sampling parameters of every request that is added to this AsyncLLM."""
    add = llm.add_request

    async def add_request(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(params, "structured_outputs", None) is not None:
            await check(params)
        return await add(request_id, prompt, params, *args, **kwargs)

    llm.add_request = add_request


def make_params_check(llm: Any, supported_tasks: Any) -> Callable[[Any], None]:
    """What raises vLLM's error about sampling parameters before anything is sent: vLLM looks at them when the engine is
    given the request, and some of its streams have begun by then."""
    processor = llm.input_processor

    def verify(params: Any) -> None:
        if not isinstance(params, SamplingParams):
            return
        token = _EARLY.set(True)
        wanted = params.structured_outputs
        try:
            if wanted is not None:
                # vLLM writes into both.
                params = copy.copy(params)
                params.structured_outputs = copy.copy(wanted)
            processor._validate_params(params, supported_tasks)
        finally:
            _EARLY.reset(token)

    return verify


__all__ = ["LEFT_TO_VLLM", "check_every_request", "extract_constraint", "make_params_check", "replace_validators"]
