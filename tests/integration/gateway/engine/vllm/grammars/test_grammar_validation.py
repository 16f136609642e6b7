"""vLLM's validation of sampling parameters with its validators replaced."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vllm.config import StructuredOutputsConfig
from vllm.exceptions import VLLMValidationError
from vllm.v1.structured_output import backend_guidance, backend_xgrammar

from gateway.engine.vllm.grammars import grammar_validation
from gateway.engine.vllm.grammars.check_results import CheckResult
from tests.integration.gateway.engine.vllm.grammars.requests import params

pytestmark = pytest.mark.usefixtures("restore_validators")


@pytest.mark.parametrize(
    ("result", "backend"),
    [
        (CheckResult("xgrammar"), "xgrammar"),
        (CheckResult("guidance"), "guidance"),
        (CheckResult("outlines"), "outlines"),
    ],
)
def test_vllm_uses_the_backend_of_the_check(monkeypatch: pytest.MonkeyPatch, result: CheckResult, backend: str) -> None:
    grammar_validation.replace_validators(lambda _: result)
    monkeypatch.setattr(backend_guidance.GuidanceBackend, "is_tokenizer_supported", staticmethod(lambda _: True))
    wanted = params(json={"type": "object"})
    wanted._validate_structured_outputs(
        SimpleNamespace(is_diffusion=False), StructuredOutputsConfig(backend="auto"), object()
    )

    assert wanted.structured_outputs._backend == backend


def test_choices_become_a_grammar_as_in_vllm() -> None:
    grammar_validation.replace_validators(lambda _: CheckResult("xgrammar"))
    wanted = params(choice=["a", "b"])
    backend_xgrammar.validate_xgrammar_grammar(wanted)

    assert wanted.structured_outputs.choice is None
    assert wanted.structured_outputs.grammar == 'root ::= "a" | "b"'


def test_a_grammar_without_a_check_does_not_reach_the_engine() -> None:
    grammar_validation.replace_validators(lambda _: None)
    # The request models' validators let it pass: it is checked later.
    backend_xgrammar.validate_xgrammar_grammar(params(regex="a"))
    with pytest.raises(VLLMValidationError, match="not supported"):
        params(regex="a")._validate_structured_outputs(
            SimpleNamespace(is_diffusion=False), StructuredOutputsConfig(backend="auto"), object()
        )


def test_a_refused_grammar_is_refused_by_vllm_too() -> None:
    grammar_validation.replace_validators(lambda _: CheckResult(None, "cannot be compiled: no"))
    with pytest.raises(VLLMValidationError, match="cannot be compiled"):
        backend_xgrammar.validate_xgrammar_grammar(params(regex="a"))
