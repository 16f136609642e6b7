"""Which grammar a request will bring, by vLLM's own request models and parsers, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from vllm.config import StructuredOutputsConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output import backend_guidance, backend_lm_format_enforcer, backend_outlines, backend_xgrammar

from gateway.engine.vllm.grammars import extraction, grammar_validation
from gateway.engine.vllm.grammars.check_results import Verdict
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.grammars.service import GrammarService
from gateway.errors import ClientError, Overloaded
from tests.support.time import clock, in_virtual_time

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
TEXT_FORMAT = {"type": "json_schema", "name": "x", "schema": SCHEMA}
MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(autouse=True)
def _vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replaced here is vLLM's own again afterwards."""
    for owner, name in (
        (backend_xgrammar, "validate_xgrammar_grammar"),
        (backend_guidance, "validate_guidance_grammar"),
        (backend_guidance, "has_guidance_unsupported_json_features"),
        (backend_outlines, "validate_structured_output_request_outlines"),
        (backend_lm_format_enforcer, "validate_structured_output_request_lm_format_enforcer"),
        (SamplingParams, "_validate_structured_outputs"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


def tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": SCHEMA, **more}}


def chat(**fields: Any) -> Any:
    return ChatCompletionRequest.model_validate({"messages": MESSAGES, **fields})


# What a request brings.


@pytest.mark.parametrize(
    ("fields", "field", "constraint"),
    [
        ({"response_format": FORMAT}, "response_format", {"json": SCHEMA}),
        ({"response_format": {"type": "json_object"}}, "response_format", {"json_object": True}),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs", {"regex": "a"}),
        ({"response_format": {"type": "text"}, "structured_outputs": {"choice": ["a"]}}, "structured_outputs", None),
    ],
)
def test_a_request_names_its_grammar(fields: Any, field: str, constraint: Any) -> None:
    named = extraction.plain(chat(**fields))

    assert named is not None
    assert named[0] == field
    assert grammar_validation.extract_constraint(named[1]) == (constraint or {"choice": ["a"]})


def test_a_request_without_a_grammar_brings_none() -> None:
    assert extraction.plain(chat()) is None
    assert extraction.plain(chat(response_format={"type": "text"})) is None


@pytest.mark.parametrize(
    ("fields", "forced"),
    [
        ({"tools": [tool()]}, False),
        ({"tools": [tool()], "tool_choice": "auto"}, False),
        ({"tools": [tool()], "tool_choice": "none"}, False),
        ({"tools": [tool()], "tool_choice": "required"}, True),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "f"}}}, True),
        ({"tools": [tool(strict=True)]}, True),
        ({"tools": [tool()], "parallel_tool_calls": False}, True),
        ({}, False),
    ],
)
def test_tools_become_a_grammar_where_they_must_be_called_or_are_strict(fields: Any, forced: bool) -> None:
    assert extraction.forces_tools(chat(**fields)) is forced


@pytest.mark.parametrize(
    ("path", "document", "constraint"),
    [
        ("/v1/responses", {"text": {"format": TEXT_FORMAT}}, {"json": SCHEMA}),
        ("/v1/responses", {"structured_outputs": {"regex": "a"}}, {"regex": "a"}),
        (
            "/v1/messages",
            {"model": "m", "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {"json": SCHEMA},
        ),
        ("/v1/chat/completions/batch", {"response_format": FORMAT, "messages": [MESSAGES]}, {"json": SCHEMA}),
        ("/invocations", {"structured_outputs": {"regex": "a"}, "prompt": "x"}, {"regex": "a"}),
        ("/invocations", {"response_format": FORMAT, "messages": MESSAGES}, {"json": SCHEMA}),
        ("/inference/v1/generate", {"sampling_params": {"structured_outputs": {"regex": "a"}}}, {"regex": "a"}),
    ],
)
def test_documents_for_vllms_own_app_bring_theirs(path: str, document: Any, constraint: Any) -> None:
    assert extraction.asks(json.dumps(document).encode())

    (request,) = extraction.of_document(path, document)
    named = extraction.plain(request)

    assert named is not None
    assert grammar_validation.extract_constraint(named[1]) == constraint


def test_a_body_that_asks_for_nothing_is_not_looked_at() -> None:
    assert not extraction.asks(b'{"messages": [{"role": "user", "content": "sch\\u00f6n"}]}')
    assert extraction.asks(b'{"respons\\u0065_format": {}}')


# What becomes of it.


class Machine:
    """Grammars of an engine that is not there, with verdicts by expression."""

    def __init__(self, verdicts: Mapping[str, Verdict], **limits: Any) -> None:
        self.asked: list[Any] = []
        self.verdicts = verdicts
        self.added: list[Any] = []
        self.config = StructuredOutputsConfig(backend="auto")
        llm = SimpleNamespace(
            vllm_config=SimpleNamespace(structured_outputs_config=self.config),
            renderer=SimpleNamespace(tokenizer=object()),
            add_request=self._add,
        )
        self.llm = llm
        self.grammars = GrammarService(llm, GrammarLimits(**limits), clock())
        self.grammars._warming.cancel()
        self.grammars._checker = self  # type: ignore[assignment]

    async def _add(self, request_id: str, prompt: Any, params: Any) -> None:
        self.added.append(params)
        params._validate_structured_outputs(SimpleNamespace(is_diffusion=False), self.config, object())

    async def check(self, constraint: Mapping[str, Any], client: str, key: bytes) -> Verdict:
        if constraint == {"regex": "busy"}:
            raise Overloaded("The machine was too busy.")
        self.asked.append((dict(constraint), client))
        return self._find(constraint)

    async def check_body(self, path: str, body: bytes, client: str | None = None) -> None:
        await self.grammars.check_body(RENDERER, path, lambda: orjson.loads(body), body, client)

    def _find(self, constraint: Mapping[str, Any]) -> Verdict:
        return self.verdicts[next(iter(constraint.values()))]

    @property
    def known(self) -> list[Any]:
        return [constraint for constraint, _ in self.asked]


RENDERER = SimpleNamespace(parser=None)


@in_virtual_time
async def test_a_refusal_names_the_field_as_the_client_wrote_it() -> None:
    machine = Machine({"a": Verdict(None, "takes longer than 4 s to compile (grammars.timeout_s)")})
    machine.grammars.find_result = lambda _: None  # type: ignore[method-assign]
    body = json.dumps({"sampling_params": {"structured_outputs": {"regex": "a"}}}).encode()
    with pytest.raises(ClientError) as refused:
        await machine.check_body("/inference/v1/generate", body, "anna")

    assert refused.value.param == "sampling_params.structured_outputs"
    assert refused.value.message == (
        "sampling_params.structured_outputs: the grammar takes longer than 4 s to compile (grammars.timeout_s)."
    )
    assert machine.asked == [({"regex": "a"}, "anna")]


@in_virtual_time
async def test_what_is_too_large_is_refused_without_asking() -> None:
    machine = Machine({}, max_choices=2)
    request = CompletionRequest.model_validate({"prompt": "x", "structured_outputs": {"choice": ["a", "b", "c"]}})
    with pytest.raises(ClientError, match=r"grammars\.max_choices"):
        await machine.grammars.check_request(RENDERER, request, None)
    forced = chat(tools=[tool(parameters={"enum": [1, 2, 3]})], tool_choice="required")
    with pytest.raises(ClientError, match=r"^tools: .*grammars\.max_choices"):
        await machine.grammars.check_request(RENDERER, forced, None)

    assert machine.asked == []


@pytest.mark.parametrize(
    "body", [b"not json", b"[]", b'{"structured_outputs": 5}', b'{"tools": "x"}', b'{"text": {"format": []}}', b"null"]
)
@in_virtual_time
async def test_what_is_wrong_otherwise_is_left_to_vllm(body: bytes) -> None:
    machine = Machine({})
    for path in ("/v1/responses", "/v1/messages", "/inference/v1/generate", "/v1/anything"):
        await machine.check_body(path, b'{"structured_outputs": 1}' + body)
        await machine.check_body(path, body)


# vLLM's validation.


def params(**fields: Any) -> Any:
    return SamplingParams(structured_outputs=StructuredOutputsParams(**fields))


@pytest.mark.parametrize(
    ("verdict", "backend"),
    [(Verdict("xgrammar"), "xgrammar"), (Verdict("guidance"), "guidance"), (Verdict("outlines"), "outlines")],
)
def test_vllm_takes_the_backend_that_was_found(monkeypatch: pytest.MonkeyPatch, verdict: Verdict, backend: str) -> None:
    grammar_validation.replace_validators(lambda _: verdict)
    monkeypatch.setattr(backend_guidance.GuidanceBackend, "is_tokenizer_supported", staticmethod(lambda _: True))
    wanted = params(json={"type": "object"})
    wanted._validate_structured_outputs(
        SimpleNamespace(is_diffusion=False), StructuredOutputsConfig(backend="auto"), object()
    )

    assert wanted.structured_outputs._backend == backend


def test_choices_become_a_grammar_as_in_vllm() -> None:
    grammar_validation.replace_validators(lambda _: Verdict("xgrammar"))
    wanted = params(choice=["a", "b"])
    backend_xgrammar.validate_xgrammar_grammar(wanted)

    assert wanted.structured_outputs.choice is None
    assert wanted.structured_outputs.grammar == 'root ::= "a" | "b"'


def test_what_nobody_has_checked_does_not_reach_the_engine() -> None:
    grammar_validation.replace_validators(lambda _: None)
    # The request models' validators let it pass: it is checked later.
    backend_xgrammar.validate_xgrammar_grammar(params(regex="a"))
    with pytest.raises(VLLMValidationError, match="not supported"):
        params(regex="a")._validate_structured_outputs(
            SimpleNamespace(is_diffusion=False), StructuredOutputsConfig(backend="auto"), object()
        )


def test_a_refused_grammar_is_refused_by_vllm_too() -> None:
    grammar_validation.replace_validators(lambda _: Verdict(None, "cannot be compiled: no"))
    with pytest.raises(VLLMValidationError, match="cannot be compiled"):
        backend_xgrammar.validate_xgrammar_grammar(params(regex="a"))


@in_virtual_time
async def test_whatever_is_added_to_the_engine_is_checked_before() -> None:
    machine = Machine({"good": Verdict("xgrammar"), "bad": Verdict(None, "cannot be compiled: no")})
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
