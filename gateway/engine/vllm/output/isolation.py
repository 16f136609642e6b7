"""Fails one request whose outputs cannot be processed, instead of all.

vLLM processes the outputs of all requests in one loop. An error there ends the task that runs it and fails every
request, and there is no other such task: each request to come would fail, too.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

from vllm.v1.engine.exceptions import EngineGenerateError

logger = logging.getLogger(__name__)

# vLLM's function, and its variables: the output that it processes, and the requests that are to be aborted so far.
_LOOP, _AT, _TO_ABORT = "process_outputs", "engine_core_output", "reqs_to_abort"


def skip_failing(
    process: Callable[[list[Any]], Any], states: dict[str, Any], forget: Callable[[str], object], error: Exception
) -> Any:
    """Go on where vLLM's `process_outputs` has raised `error`, without the request at fault, and return its result.
    `process` is called with the outputs behind that one; `forget` has vLLM drop a request. Raises `error` if it came
    from elsewhere."""
    aborted: list[str] = []
    while True:
        frame = _loop_of(error)
        if frame is None or _AT not in frame.f_locals:
            raise error
        culprit = frame.f_locals[_AT]
        outputs = frame.f_locals["engine_core_outputs"]
        aborted += frame.f_locals.get(_TO_ABORT, [])
        name = culprit.request_id
        logger.error("the outputs of request %s cannot be processed", name, exc_info=error)
        if (state := states.get(name)) is not None:
            state.queue.put(EngineGenerateError())
            forget(name)
        # In the engine, too, which goes on with it.
        aborted.append(name)
        position = next(index for index, output in enumerate(outputs) if output is culprit)
        try:
            done = process(list(outputs[position + 1 :]))
        except Exception as another:
            error = another
            continue
        done.reqs_to_abort[:0] = aborted
        return done


def restart_output_handler(llm: Any) -> list[str]:
    """Start another task if the one of that loop has ended all the same: no request would be answered any more, while
    the engine is well. Returns the requests that have failed with it, which are to be aborted."""
    if llm.output_handler is None or not llm.output_handler.done() or llm.engine_core.resources.engine_dead:
        return []
    llm.output_handler = None
    llm._run_output_handler()
    return list(llm.output_processor.request_states)


def _loop_of(error: Exception) -> FrameType | None:
    """The frame of vLLM's loop in an error's traceback, None if the error comes from elsewhere."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    loops = [one for one in frames if one.f_code.co_name == _LOOP and _TO_ABORT in one.f_code.co_varnames]
    return loops[-1] if loops else None
