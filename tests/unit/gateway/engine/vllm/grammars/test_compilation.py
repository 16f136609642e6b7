"""How the engine process compiles grammars: vLLM's own manager, with scripted backends."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from xgrammar import GrammarCompiler, TokenizerInfo, VocabType

from gateway.engine.vllm.grammars import compilation
from tests.support.time import VirtualClock


class Backend:
    """Replaces one of vLLM's backends."""

    width = 8

    def __init__(self, config: Any, tokenizer: Any, vocab_size: int) -> None:
        self.compiled: list[str] = []
        self.hold = threading.Event()
        self.hold.set()

    def compile_grammar(self, kind: str, spec: str, stop_token_ids: Any) -> str:
        self.hold.wait(10)
        self.compiled.append(spec)
        if spec == "bad":
            raise ValueError("not for the log")
        return Grammar(f"{kind} {spec}")

    def allocate_token_bitmask(self, count: int) -> Any:
        return SimpleNamespace(shape=(count, self.width))


class Grammar:
    """A compiled grammar each of whose masks takes `mask_s`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mask_s = 0.0
        self.clock: Any = None

    def fill_bitmask(self, bitmask: Any, index: int) -> None:
        if self.clock is not None:
            self.clock.advance(self.mask_s)

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return True


class Wider(Backend):
    width = 9


class Manager:
    """The attributes of vLLM's manager that the replaced methods use."""

    def __init__(self) -> None:
        self.backend: Any = None
        self.executor: Any = None
        self.tokenizer = None
        self.vllm_config = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 256))
        self._use_async_grammar_compilation = True


compilation.replace_compilation(Manager)


def a_request(spec: str, backend: str = "xgrammar") -> Any:
    output = SimpleNamespace(structured_output_key=("regex", spec), grammar=None)
    params = SimpleNamespace(structured_outputs=SimpleNamespace(_backend=backend), all_stop_token_ids=set())
    request = SimpleNamespace(request_id=spec, structured_output_request=output, sampling_params=params, over=False)
    request.is_finished = lambda: request.over
    return request


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Any:
    classes = {"xgrammar": Backend, "guidance": type("Guidance", (Backend,), {}), "outlines": Wider}
    monkeypatch.setattr(compilation, "_backend_class", classes.__getitem__)
    return Manager()


def compiled(manager: Any, request: Any) -> Any:
    manager.grammar_init(request)
    return request.structured_output_request.grammar.result(10)


def test_each_grammar_is_compiled_with_the_backend_of_its_check(manager: Any) -> None:
    assert compiled(manager, a_request("a")).name == "regex a"
    compiled(manager, a_request("b", "guidance"))

    # The first backend allocates the masks; a backend with wider masks cannot be used beside it.
    assert manager.backend.compiled == ["a"]
    compiled(manager, a_request("c", "outlines"))
    assert manager.backend.compiled == ["a", "c"]


def test_a_request_without_a_grammar_creates_no_backend(manager: Any) -> None:
    manager.grammar_init(SimpleNamespace(structured_output_request=None))

    assert manager.backend is None


def test_the_grammar_of_a_finished_request_is_not_compiled(manager: Any) -> None:
    compiled(manager, a_request("first"))
    manager.backend.hold.clear()
    requests = [a_request(f"slow{i}") for i in range(8)]
    ended = a_request("ended")
    for request in [*requests, ended]:
        manager.grammar_init(request)
    ended.over = True
    manager.backend.hold.set()
    for request in requests:
        request.structured_output_request.grammar.result(10)
    with pytest.raises(compilation.RequestEnded):
        ended.structured_output_request.grammar.result(10)

    assert "ended" not in manager.backend.compiled


def test_a_failure_reaches_the_scheduler_and_logs_no_stack(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="not for the log"):
        compiled(manager, a_request("bad"))

    assert [record.exc_info for record in caplog.records] == [None]
    assert "not for the log" not in caplog.text


def test_without_threads_a_failure_reaches_the_scheduler_too(manager: Any) -> None:
    manager._use_async_grammar_compilation = False
    with pytest.raises(ValueError, match="not for the log"):
        compiled(manager, a_request("bad"))
    assert compiled(manager, a_request("a")).name == "regex a"


@pytest.mark.parametrize(("mask_s", "tokens"), [(0.004, 5000), (0.105, 20), (3.0, 0)])
def test_a_grammar_whose_masks_take_too_long_refuses_the_next_token(mask_s: float, tokens: int) -> None:
    grammar = Grammar("a")
    grammar.mask_s, grammar.clock = mask_s, VirtualClock()
    compilation.limit_mask_time(grammar, grammar.clock)
    taken = 0
    for _ in range(5000):
        grammar.fill_bitmask(None, 0)
        if not grammar.accept_tokens("a", [1]):
            break
        taken += 1

    assert taken == pytest.approx(tokens, abs=1)


def test_equal_grammars_are_compiled_once_and_the_oldest_are_dropped() -> None:
    info = TokenizerInfo([bytes([i]) for i in range(256)], vocab_type=VocabType.RAW, stop_token_ids=[0])
    compiler = compilation.CachingCompiler(GrammarCompiler(info), max_bytes=1)
    first = compiler.compile_regex("a+")

    assert compiler.compile_regex("a+") is first

    second = compiler.compile_json_schema('{"type": "object"}', any_whitespace=True, separators=None)

    assert compiler.compile_json_schema('{"type": "object"}', any_whitespace=True, separators=None) is second
    assert compiler.size_bytes == second.memory_size_bytes
    assert compiler.compile_regex("a+") is not first
    with pytest.raises(RuntimeError):
        compiler.compile_regex("(((")
    with pytest.raises(RuntimeError):
        compiler.compile_regex("(((")
