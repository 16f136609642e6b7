"""The plug-in that runs inside the engine process.

vLLM loads general plug-ins in every process of an engine: the only official place where code of ours runs there. It

- leaves the gateway's process group: a signal to the group is meant for the gateway, and an engine that stops by itself
  cuts the streams that the gateway is still finishing;
- ends the process when the gateway is gone: after a kill -9 of the gateway nothing else would stop the engine;
- lets a client abort the requests of another one: vLLM goes on with those of a front end that has died;
- replaces the compilation of grammars (`grammars.compilation`).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from gateway.engine.vllm.grammars import compilation

# Set for the processes that Sluice starts; without it the plug-in does nothing in other programs' processes.
VARIABLE = "SLUICE_ENGINE_PROCESS"
WITH_STACK_TRACES = "debug"
# An orphan holds the accelerator's memory, so it must be gone before a restarted gateway needs it.
_CHECK_EVERY_S = 0.5
# A method of the engine: clients call those by name.
ABORT_CLIENT = "sluice_abort_client"


def install_plugin() -> None:
    """Entry point of the group `vllm.general_plugins`."""
    parent = multiprocessing.parent_process()
    if VARIABLE not in os.environ or parent is None or parent.pid is None:
        return
    if parent.pid != os.getppid():
        # It ended while this process was still importing.
        os._exit(1)
    if os.environ[VARIABLE] != WITH_STACK_TRACES:
        # multiprocessing prints the stack of a failed start; the log has the error, and the gateway reports it.
        traceback.print_exc = lambda *_, **__: None
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    if (core := sys.modules.get("vllm.v1.engine.core")) is not None:
        setattr(core.EngineCoreProc, ABORT_CLIENT, _abort_client)
        compilation.replace_compilation(core.StructuredOutputManager)
    threading.Thread(target=_exit_after, args=(parent.pid,), name="sluice-orphan", daemon=True).start()


def unmark_environment() -> None:
    """Keep the plug-in out of the processes that this one starts."""
    os.environ.pop(VARIABLE, None)


def _abort_client(engine: Any, client: int) -> int:
    """Abort all requests of a client and return their count."""
    left = [name for name, request in engine.scheduler.requests.items() if request.client_index == client]
    engine.abort_requests(left)
    return len(left)


_original_run_coordinator: Callable[..., Any] | None = None


def replace_coordinator(process: Any) -> None:
    """Install the plug-in in the process that balances data-parallel engines, too, where vLLM loads none. `process` is
    its class, vLLM's DPCoordinatorProc."""
    global _original_run_coordinator  # noqa: PLW0603 - a forked child has the value of its parent
    if process.run_coordinator is not run_coordinator:
        _original_run_coordinator = process.run_coordinator
        process.run_coordinator = staticmethod(run_coordinator)


def run_coordinator(*args: Any, **kwargs: Any) -> None:
    """Replaces the function that the coordinator runs; spawned processes find it by this name."""
    install_plugin()
    run = _original_run_coordinator
    if run is None:
        from vllm.v1.engine.coordinator import DPCoordinatorProc

        run = DPCoordinatorProc.run_coordinator
    run(*args, **kwargs)


def _exit_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_EVERY_S)
    os._exit(1)
