from __future__ import annotations

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.structured_output import backend_guidance, backend_lm_format_enforcer, backend_outlines, backend_xgrammar


@pytest.fixture
def restore_validators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores vLLM's own validators after the test."""
    for owner, name in (
        (backend_xgrammar, "validate_xgrammar_grammar"),
        (backend_guidance, "validate_guidance_grammar"),
        (backend_guidance, "has_guidance_unsupported_json_features"),
        (backend_outlines, "validate_structured_output_request_outlines"),
        (backend_lm_format_enforcer, "validate_structured_output_request_lm_format_enforcer"),
        (SamplingParams, "_validate_structured_outputs"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
