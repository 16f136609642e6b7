"""The engine processes, for a parent that serves no requests itself: started as vLLM's own server starts them for
several front ends, watched, ended. vLLM's monitor would run in the process of the only client that it usually has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.engine.vllm import engine_process
from gateway.engine.vllm.core_client.factory import make_config
from gateway.engine.vllm.daemon_threads import run_in_daemon_thread
from gateway.engine.vllm.startup import launcher
from gateway.engine.vllm.startup.engine_arguments import parse_args
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.engine.vllm.startup.startup_errors import StartupErrors

# The engine process gets this long to clean up its shared memory before it is killed.
_STOP_WITHIN_S = 5.0
# The kernel frees a killed process's memory in less.
_GONE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class EngineProcesses:
    """The processes of one start. `addresses` holds, for each client, the sockets over which it reaches them."""

    addresses: tuple[Mapping[str, str], ...]
    manager: Any
    coordinator: Any

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes() if process.pid is not None]

    async def wait_dead(self) -> None:
        """Return when any of them has died: one dead engine of several takes the others along."""
        loop = asyncio.get_running_loop()
        died = asyncio.Event()
        # Duplicates, because vLLM may close its own descriptors while they are watched.
        watched = [os.dup(process.sentinel) for process in self._processes()]
        try:
            for descriptor in watched:
                loop.add_reader(descriptor, died.set)
            await died.wait()
        finally:
            for descriptor in watched:
                loop.remove_reader(descriptor)
                os.close(descriptor)

    def kill(self) -> None:
        """End processes that are stuck, with SIGKILL."""
        for process in self._processes():
            process.kill()

    async def end(self, within_s: float = _STOP_WITHIN_S) -> None:
        """End those that are left, and wait until they are gone: the next engine needs their memory."""
        await run_in_daemon_thread(lambda: self.end_blocking(within_s))

    def end_blocking(self, within_s: float) -> None:
        """As `end`, in this thread."""
        self.manager.shutdown(timeout=within_s)
        if self.coordinator is not None:
            self.coordinator.shutdown()
        for process in self._processes():
            process.join(_GONE_WITHIN_S)

    def _processes(self) -> list[Any]:
        return [*self.manager.processes, *([] if self.coordinator is None else [self.coordinator.proc])]


class EngineProcessLauncher:
    """Starts the engine processes of `plan`, any number of times."""

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self._errors: StartupErrors | None = None

    async def launch(self) -> EngineProcesses:
        """Start them and wait until they are ready. Raises SettingsError, in one sentence, if they cannot start."""
        plan = self._plan
        if self._errors is None:
            self._errors = launcher.prepare(plan)
        else:
            # Stages are reported once.
            plan = replace(plan, on_stage=lambda _: None)
        with self._errors.explained():
            return await run_in_daemon_thread(lambda: _launch(plan))


def _launch(plan: EnginePlan) -> EngineProcesses:
    plan.on_stage("importing vLLM")
    from vllm.v1.engine.coordinator import DPCoordinatorProc
    from vllm.v1.engine.utils import EngineZmqAddresses, get_engine_zmq_bind_addresses, launch_core_engines
    from vllm.v1.executor import Executor

    engine_process.replace_coordinator(DPCoordinatorProc)
    args = parse_args(plan)
    plan.on_stage("reading the model's configuration")
    config = make_config(args, (plan.workers, -1))
    plan.report_starting()
    # Sockets of this machine, so the clients may bind theirs later: until then the engine tries again.
    sockets = get_engine_zmq_bind_addresses(config, plan.workers)
    addresses = EngineZmqAddresses(sockets.inputs, sockets.outputs)
    launched = None
    try:
        with launch_core_engines(config, Executor.get_class(config), not args.disable_log_stats, addresses) as launched:
            pass
    except BaseException:
        if launched is not None:
            EngineProcesses((), launched.engine_manager, launched.coordinator).end_blocking(0)
        raise
    stats = {}
    if launched.coordinator is not None:
        stats["stats_update_address"] = launched.coordinator.get_stats_publish_address()
    plan.on_stage("building the API")
    pairs = zip(sockets.inputs, sockets.outputs, strict=True)
    return EngineProcesses(
        tuple({"input_address": inputs, "output_address": outputs, **stats} for inputs, outputs in pairs),
        launched.engine_manager,
        launched.coordinator,
    )
