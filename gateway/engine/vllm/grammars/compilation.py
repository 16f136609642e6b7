"""How the engine process compiles grammars: `child` puts this in the place of vLLM's own way there.

What comes here has passed the check, so its time is bounded. vLLM compiles in one queue whose threads cannot be
stopped, so that: a grammar whose request has been aborted is not begun; several are compiled at once, behind the
engine's own work; each with the backend that it was checked with, where vLLM takes for all of them the one that came
first; once for all who send it, with a memory of our own, because xgrammar's makes some grammars ten times as slow; one
whose masks take too long ends its own request, because all others wait for them; and a failure is a line in the log,
not a stack.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from gateway.clock import Clock, SystemClock

logger = logging.getLogger("vllm.sluice.grammars")

# A slow grammar must not hold up a fast one. They compile without the interpreter's lock, each with eight threads of
# its own, which together must not take the machine from the engine's steps.
_THREADS = 8
_NICE = 15
# How long masks may take on average for each token.
PER_TOKEN_S = 0.01
# At the beginning they may take longer. The engine's thread competes for the machine, so this is
# more than in the check.
SLACK_S = 2.0


class Abandoned(Exception):
    """The request is over; its grammar is not compiled."""


def replace_compilation(manager: type[Any]) -> None:
    """Replace methods of vLLM's StructuredOutputManager."""
    manager.grammar_init = _grammar_init
    manager._create_grammar = _create_grammar


def _grammar_init(self: Any, request: Any) -> None:
    """As vLLM's: the request's grammar is being compiled."""
    wanted = request.structured_output_request
    if wanted is None:
        return
    backend = backend_for(self, request.sampling_params.structured_outputs._backend)
    if self._use_async_grammar_compilation:
        wanted.grammar = self.executor.submit(_create_grammar, self, request, backend)
        return
    made: Future[Any] = Future()
    try:
        made.set_result(_create_grammar(self, request, backend))
    except Exception as error:
        made.set_exception(error)
    wanted.grammar = made


def _create_grammar(self: Any, request: Any, backend: Any = None) -> Any:
    """Compile, unless nobody waits for it any more."""
    if request.is_finished():
        raise Abandoned
    try:
        params = request.sampling_params
        made = (backend or self.backend).compile_grammar(
            *request.structured_output_request.structured_output_key, stop_token_ids=params.all_stop_token_ids
        )
        limit(made, SystemClock())
        return made
    except Exception as error:
        logger.warning("the grammar of request %s cannot be compiled: %s", request.request_id, type(error).__name__)
        raise


def limit(grammar: Any, clock: Clock) -> None:
    """Have the grammar refuse tokens once its masks have taken too long: the scheduler then ends its request."""
    fill, accept = grammar.fill_bitmask, grammar.accept_tokens
    left_s = SLACK_S

    def fill_bitmask(bitmask: Any, index: int) -> None:
        nonlocal left_s
        began_s = clock.now()
        fill(bitmask, index)
        left_s -= clock.now() - began_s

    def accept_tokens(request_id: str, tokens: list[int]) -> Any:
        nonlocal left_s
        if left_s < 0:
            logger.warning("the grammar of request %s takes too long for each token", request_id)
            return False
        began_s = clock.now()
        accepted = accept(request_id, tokens)
        left_s += len(tokens) * PER_TOKEN_S - (clock.now() - began_s)
        return accepted

    grammar.fill_bitmask, grammar.accept_tokens = fill_bitmask, accept_tokens


def backend_for(self: Any, name: str) -> Any:
    """The backend of that name; made when it is first needed. vLLM's own manager has one, which makes the masks'
    memory: another one is used beside it if its masks are as wide."""
    backends = self.__dict__.setdefault("_sluice_backends", {})
    if name in backends:
        return backends[name]
    if not backends:
        # Threads of vLLM's have not begun anything yet.
        self.executor = ThreadPoolExecutor(_THREADS, "sluice-grammar", initializer=_step_back)
    made = _class_of(name)(
        self.vllm_config, tokenizer=self.tokenizer, vocab_size=self.vllm_config.model_config.get_vocab_size()
    )
    if (compiler := getattr(made, "compiler", None)) is not None:
        made.compiler = Compiler(compiler)
    if self.backend is None:
        self.backend = made
    elif made.allocate_token_bitmask(1).shape != self.backend.allocate_token_bitmask(1).shape:
        made = self.backend
    backends[name] = made
    return made


class Compiler:
    """xgrammar's compiler, which remembers what it has compiled. It is asked from several threads."""

    def __init__(self, compiler: Any, max_bytes: int = 0) -> None:
        """`compiler` is vLLM's own; `max_bytes` its limit on what is remembered, by default."""
        import vllm.envs
        from xgrammar import GrammarCompiler

        # A compiler does not tell for which tokens it compiles, what it compiles does.
        info = compiler.compile_regex("a").tokenizer_info
        self._compiler = GrammarCompiler(info, max_threads=8, cache_enabled=False)
        self._max_bytes = max_bytes or vllm.envs.VLLM_XGRAMMAR_CACHE_MB * 2**20
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, str], Future[Any]] = OrderedDict()
        self.size_bytes = 0

    def __getattr__(self, name: str) -> Any:
        compile_it = getattr(self._compiler, name)
        if not name.startswith("compile_"):
            return compile_it

        def compiled(*args: Any, **kwargs: Any) -> Any:
            return self._once((name, repr((args, kwargs))), lambda: compile_it(*args, **kwargs))

        return compiled

    def _once(self, key: tuple[str, str], compile_it: Callable[[], Any]) -> Any:
        with self._lock:
            found = self._compiled.get(key)
            if found is None:
                mine = self._compiled[key] = Future()
            else:
                self._compiled.move_to_end(key)
        if found is not None:
            return found.result()
        try:
            made = compile_it()
        except BaseException as error:
            mine.set_exception(error)
            with self._lock:
                del self._compiled[key]
            raise
        mine.set_result(made)
        with self._lock:
            self.size_bytes += made.memory_size_bytes
            for old in list(self._compiled):
                if self.size_bytes <= self._max_bytes:
                    break
                if old != key and self._compiled[old].done():
                    self.size_bytes -= self._compiled.pop(old).result().memory_size_bytes
        return made


def _class_of(name: str) -> Any:
    if name.startswith("xgrammar"):
        from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

        return XgrammarBackend
    if name.startswith("guidance"):
        from vllm.v1.structured_output.backend_guidance import GuidanceBackend

        return GuidanceBackend
    if name == "outlines":
        from vllm.v1.structured_output.backend_outlines import OutlinesBackend

        return OutlinesBackend
    if name == "lm-format-enforcer":
        from vllm.v1.structured_output.backend_lm_format_enforcer import LMFormatEnforcerBackend

        return LMFormatEnforcerBackend
    raise ValueError(f"Unsupported structured output backend: {name}")


def _step_back() -> None:
    """On Linux a thread has a priority of its own, and those that the libraries start inherit it."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


__all__ = ["Abandoned", "Compiler", "backend_for", "limit", "replace_compilation"]
