"""The checks of requests, bodies and sampling parameters, with a queue whose results the test sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from vllm.config import StructuredOutputsConfig
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import SamplingParams

from gateway.engine.vllm.grammars import grammar_validation
from gateway.engine.vllm.grammars.check_results import CheckResult
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.grammars.service import GrammarService
from gateway.errors import ClientError, Overloaded
from tests.integration.gateway.engine.vllm.grammars.requests import chat, params, tool
from tests.support.time import clock, in_virtual_time

pytestmark = pytest.mark.usefixtures("restore_validators")


class Machine:
    """The service of a fake engine, with a result for each expression."""

    def __init__(self, results: Mapping[str, CheckResult], **limits: Any) -> None:
        self.checked: list[Any] = []
        self.results = results
        self.added: list[Any] = []
        self.config = StructuredOutputsConfig(backend="auto")
        llm = SimpleNamespace(
            vllm_config=SimpleNamespace(structured_outputs_config=self.config),
            renderer=SimpleNamespace(tokenizer=object()),
            add_request=self._add,
        )
        self.llm = llm
        self.grammars = GrammarService(llm, GrammarLimits(**limits), clock())
        self.grammars._start_timer.cancel()
        self.grammars._queue = self  # type: ignore[assignment]

    async def _add(self, request_id: str, prompt: Any, params: Any) -> None:
        self.added.append(params)
        params._validate_structured_outputs(SimpleNamespace(is_diffusion=False), self.config, object())

    async def check(self, constraint: Mapping[str, Any], client: str, key: bytes) -> CheckResult:
        if constraint == {"regex": "busy"}:
            raise Overloaded("The machine was too busy.")
        self.checked.append((dict(constraint), client))
        return self._find(constraint)

    async def check_body(self, path: str, body: bytes, client: str | None = None) -> None:
        await self.grammars.check_body(RENDERER, path, lambda: orjson.loads(body), body, client)

    def _find(self, constraint: Mapping[str, Any]) -> CheckResult:
        return self.results[next(iter(constraint.values()))]

    @property
    def known(self) -> list[Any]:
        return [constraint for constraint, _ in self.checked]


RENDERER = SimpleNamespace(parser=None)


@in_virtual_time
async def test_a_refusal_has_the_clients_name_of_the_field() -> None:
    machine = Machine({"a": CheckResult(None, "takes longer than 4 s to compile (grammars.timeout_s)")})
    machine.grammars.find_result = lambda _: None  # type: ignore[method-assign]
    body = json.dumps({"sampling_params": {"structured_outputs": {"regex": "a"}}}).encode()
    with pytest.raises(ClientError) as refused:
        await machine.check_body("/inference/v1/generate", body, "anna")

    assert refused.value.param == "sampling_params.structured_outputs"
    assert refused.value.message == (
        "sampling_params.structured_outputs: the grammar takes longer than 4 s to compile (grammars.timeout_s)."
    )
    assert machine.checked == [({"regex": "a"}, "anna")]


@in_virtual_time
async def test_a_grammar_that_is_too_large_is_refused_without_a_check() -> None:
    machine = Machine({}, max_choices=2)
    request = CompletionRequest.model_validate({"prompt": "x", "structured_outputs": {"choice": ["a", "b", "c"]}})
    with pytest.raises(ClientError, match=r"grammars\.max_choices"):
        await machine.grammars.check_request(RENDERER, request, None)
    forced = chat(tools=[tool(parameters={"enum": [1, 2, 3]})], tool_choice="required")
    with pytest.raises(ClientError, match=r"^tools: .*grammars\.max_choices"):
        await machine.grammars.check_request(RENDERER, forced, None)

    assert machine.checked == []


@pytest.mark.parametrize(
    "body", [b"not json", b"[]", b'{"structured_outputs": 5}', b'{"tools": "x"}', b'{"text": {"format": []}}', b"null"]
)
@in_virtual_time
async def test_other_errors_in_a_body_are_left_to_vllm(body: bytes) -> None:
    machine = Machine({})
    for path in ("/v1/responses", "/v1/messages", "/inference/v1/generate", "/v1/anything"):
        await machine.check_body(path, b'{"structured_outputs": 1}' + body)
        await machine.check_body(path, body)


@in_virtual_time
async def test_every_request_is_checked_before_it_is_added_to_the_engine() -> None:
    machine = Machine({"good": CheckResult("xgrammar"), "bad": CheckResult(None, "cannot be compiled: no")})
    machine.grammars.find_result = lambda constraint: (  # type: ignore[method-assign]
        machine._find(constraint) if dict(constraint) in machine.known else None
    )
    grammar_validation.replace_validators(machine.grammars.find_result)
    await machine.llm.add_request("1", "x", params(regex="good"))
    with pytest.raises(VLLMValidationError, match="cannot be compiled: no"):
        await machine.llm.add_request("2", "x", params(regex="bad"))
    with pytest.raises(GracefulHTTPError) as busy:
        await machine.llm.add_request("3", "x", params(regex="busy"))
    await machine.llm.add_request("4", "x", SamplingParams())

    assert busy.value.http_status == 503

    assert [one.structured_outputs and one.structured_outputs._backend for one in machine.added] == ["xgrammar", None]
