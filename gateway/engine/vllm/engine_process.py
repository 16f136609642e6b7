"""What runs inside the engine process.

vLLM loads general plugins in every process of an engine, so this is the one official place where code of ours runs
there. It does four things, so that the gateway stays in charge of its engine:

- leave the gateway's process group: a signal to the group is meant for the gateway, and an engine that stops by
  itself cuts the streams that the gateway still wants to finish;
- end when the gateway is gone: after a kill -9 of the gateway nobody else would stop the engine;
- let a client abort what another one has left behind: vLLM goes on for a front end that has died;
- compile grammars in our way (`grammars.compilation`).
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

# Set by `launch` for the processes that it starts; without it this plugin stays out of other programs' way.
VARIABLE = "SLUICE_ENGINE_PROCESS"
WITH_STACK_TRACES = "debug"
# An orphan holds the accelerator's memory, so it must be gone before a restarted gateway wants it.
CHECK_EVERY_S = 0.5
# A method of the engine's: clients call those by name.
ABORT_CLIENT = "sluice_abort_client"


def install_plugin() -> None:
    """Entry point of the group `vllm.general_plugins`."""
    parent = multiprocessing.parent_process()
    if VARIABLE not in os.environ or parent is None or parent.pid is None:
        return
    if parent.pid != os.getppid():
        # It went while this process was still importing.
        os._exit(1)
    if os.environ[VARIABLE] != WITH_STACK_TRACES:
        # multiprocessing prints the stack of a failed start; the log has the error, and the gateway says it again.
        traceback.print_exc = lambda *_, **__: None
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    if (core := sys.modules.get("vllm.v1.engine.core")) is not None:
        setattr(core.EngineCoreProc, ABORT_CLIENT, _abort_client)
        compilation.replace_compilation(core.StructuredOutputManager)
    threading.Thread(target=_exit_after, args=(parent.pid,), name="sluice-orphan", daemon=True).start()


def _abort_client(engine: Any, client: int) -> int:
    """Abort all requests of that client; how many there were."""
    left = [name for name, request in engine.scheduler.requests.items() if request.client_index == client]
    engine.abort_requests(left)
    return len(left)


_original_run_coordinator: Callable[..., Any] | None = None


def replace_coordinator(process: Any) -> None:
    """Have the process that balances data-parallel engines settle, too: vLLM loads no plugins there. `process` is its
    class, vLLM's DPCoordinatorProc."""
    global _original_run_coordinator  # noqa: PLW0603 - where processes are forked, the child has what its parent had
    if process.run_coordinator is not run_coordinator:
        _original_run_coordinator = process.run_coordinator
        process.run_coordinator = staticmethod(run_coordinator)


def run_coordinator(*args: Any, **kwargs: Any) -> None:
    """Stands where vLLM names the function that the coordinator runs; processes find it by this name."""
    install_plugin()
    run = _original_run_coordinator
    if run is None:
        from vllm.v1.engine.coordinator import DPCoordinatorProc

        run = DPCoordinatorProc.run_coordinator
    run(*args, **kwargs)


def _exit_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_EVERY_S)
    os._exit(1)


__all__ = ["ABORT_CLIENT", "VARIABLE", "install_plugin", "replace_coordinator", "run_coordinator"]
