"""Replaces how vLLM's engine process compiles grammars.

Each grammar has passed the check, so its time is bounded. vLLM compiles in a queue whose threads cannot be stopped.
Here instead:

- a grammar whose request has been aborted is not compiled;
- several are compiled at once, at a lower priority than the engine's own work;
- each is compiled with the backend of its check, where vLLM uses the first grammar's backend for all;
- equal grammars are compiled once, in a cache of our own, because xgrammar's makes some grammars ten times as slow;
- a grammar whose masks take too long ends its own request, because all other requests wait for the masks;
- a failure is one line in the log, not a stack.
"""

from __future__ import annotations

import importlib
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

BACKENDS = {
    "xgrammar": ("backend_xgrammar", "validate_xgrammar_grammar", "XgrammarBackend"),
    "guidance": ("backend_guidance", "validate_guidance_grammar", "GuidanceBackend"),
    "outlines": ("backend_outlines", "validate_structured_output_request_outlines", "OutlinesBackend"),
    "lm-format-enforcer": (
        "backend_lm_format_enforcer",
        "validate_structured_output_request_lm_format_enforcer",
        "LMFormatEnforcerBackend",
    ),
}
"""Of each of vLLM's backends the module, its validator and its class."""

# A slow grammar must not delay a fast one. They compile without the interpreter's lock, each with eight threads of its
# own, which together must not take the machine from the engine's steps.
_THREADS = 8
_NICE = 15
# The average time that masks may take for each token.
PER_TOKEN_S = 0.01
# The additional time that all masks together may take. The engine's thread competes for the machine, so this is more
# than in the check.
SLACK_S = 2.0


class RequestEnded(Exception):
    """The request has ended, so its grammar is not compiled."""


def replace_compilation(manager: type[Any]) -> None:
    """Replace the methods of vLLM's StructuredOutputManager that compile."""
    manager.grammar_init = _grammar_init
    manager._create_grammar = _create_grammar


def _grammar_init(self: Any, request: Any) -> None:
    """Replaces `StructuredOutputManager.grammar_init` because it compiles with the backend of the first grammar."""
    structured_output = request.structured_output_request
    if structured_output is None:
        return
    backend = get_backend(self, request.sampling_params.structured_outputs._backend)
    if self._use_async_grammar_compilation:
        structured_output.grammar = self.executor.submit(_create_grammar, self, request, backend)
        return
    made: Future[Any] = Future()
    try:
        made.set_result(_create_grammar(self, request, backend))
    except Exception as error:
        made.set_exception(error)
    structured_output.grammar = made


def _create_grammar(self: Any, request: Any, backend: Any = None) -> Any:
    """Replaces `StructuredOutputManager._create_grammar` because it also compiles for requests that have ended."""
    if request.is_finished():
        raise RequestEnded
    try:
        params = request.sampling_params
        made = (backend or self.backend).compile_grammar(
            *request.structured_output_request.structured_output_key, stop_token_ids=params.all_stop_token_ids
        )
        limit_mask_time(made, SystemClock())
        return made
    except Exception as error:
        logger.warning("the grammar of request %s cannot be compiled: %s", request.request_id, type(error).__name__)
        raise


def limit_mask_time(grammar: Any, clock: Clock) -> None:
    """Make the grammar refuse tokens once its masks have taken too long: the scheduler then ends its request."""
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


def get_backend(self: Any, name: str) -> Any:
    """The backend of that name, created on first use. The manager's own backend allocates the memory of the masks, so
    another backend is used only if its masks have the same width."""
    backends = self.__dict__.setdefault("_sluice_backends", {})
    if name in backends:
        return backends[name]
    if not backends:
        # vLLM's own threads have not compiled anything yet.
        self.executor = ThreadPoolExecutor(_THREADS, "sluice-grammar", initializer=_lower_priority)
    made = _backend_class(name)(
        self.vllm_config, tokenizer=self.tokenizer, vocab_size=self.vllm_config.model_config.get_vocab_size()
    )
    if (compiler := getattr(made, "compiler", None)) is not None:
        made.compiler = CachingCompiler(compiler)
    if self.backend is None:
        self.backend = made
    elif made.allocate_token_bitmask(1).shape != self.backend.allocate_token_bitmask(1).shape:
        made = self.backend
    backends[name] = made
    return made


class CachingCompiler:
    """xgrammar's compiler with a cache. Several threads use it."""

    def __init__(self, compiler: Any, max_bytes: int = 0) -> None:
        """`compiler` is vLLM's own; `max_bytes` is the cache's limit, 0 for vLLM's own limit."""
        import vllm.envs
        from xgrammar import GrammarCompiler

        # The compiler has no attribute with its tokenizer, but a compiled grammar has.
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
            return self._compile_once((name, repr((args, kwargs))), lambda: compile_it(*args, **kwargs))

        return compiled

    def _compile_once(self, key: tuple[str, str], compile_it: Callable[[], Any]) -> Any:
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


def _backend_class(name: str) -> Any:
    module, _, kind = BACKENDS[name]
    return getattr(importlib.import_module(f"vllm.v1.structured_output.{module}"), kind)


def _lower_priority() -> None:
    """Lower the priority of this thread. On Linux threads have priorities, which the libraries' threads inherit."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
