"""How the engine process compiles grammars: `child` puts this in the place of vLLM's own way there.

What comes here has passed the check, so its time is bounded. vLLM compiles in one queue whose threads cannot be
stopped, so that: a grammar whose request has been aborted is not begun; several are compiled at once, behind the
engine's own work; each with the backend that it was checked with, where vLLM takes for all of them the one that came
first; and a failure is a line in the log, not a stack.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

logger = logging.getLogger("vllm.sluice.grammars")

# A slow grammar must not hold up a fast one. They compile without the interpreter's lock.
_THREADS = 8
_NICE = 5


class Abandoned(Exception):
    """The request is over; its grammar is not compiled."""


def adopt(manager: type[Any]) -> None:
    """Replace methods of vLLM's StructuredOutputManager."""
    manager.grammar_init = _grammar_init
    manager._create_grammar = _create_grammar


def _grammar_init(self: Any, request: Any) -> None:
    """As vLLM's: the request's grammar is being compiled."""
    wanted = request.structured_output_request
    if wanted is None:
        return
    backend = _backend_for(self, request.sampling_params.structured_outputs._backend)
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
        return (backend or self.backend).compile_grammar(
            *request.structured_output_request.structured_output_key, stop_token_ids=params.all_stop_token_ids
        )
    except Exception as error:
        logger.warning("the grammar of request %s cannot be compiled: %s", request.request_id, type(error).__name__)
        raise


def _backend_for(self: Any, name: str) -> Any:
    """The backend of that name; made when it is first needed. vLLM's own manager has one, which makes the masks'
    memory: another one is used beside it if its masks are as wide."""
    backends = self.__dict__.setdefault("_sluice_backends", {})
    if name in backends:
        return backends[name]
    if not backends:
        # Threads of vLLM's have not begun anything yet.
        self.executor = ThreadPoolExecutor(_THREADS, "sluice-grammar", initializer=_step_back)
    made = _make(name)(
        self.vllm_config, tokenizer=self.tokenizer, vocab_size=self.vllm_config.model_config.get_vocab_size()
    )
    if self.backend is None:
        self.backend = made
    elif made.allocate_token_bitmask(1).shape != self.backend.allocate_token_bitmask(1).shape:
        made = self.backend
    backends[name] = made
    return made


def _make(name: str) -> Any:
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


__all__ = ["Abandoned", "adopt"]
