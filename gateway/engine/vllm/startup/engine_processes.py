"""The engine processes, for a parent that serves nobody itself: started as vLLM's own server starts them for several
front ends, watched, ended. vLLM's monitor would be in the process of the one client there usually is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.engine.vllm import engine_process
from gateway.engine.vllm.core_client.factory import make_config
from gateway.engine.vllm.startup import launcher
from gateway.engine.vllm.startup.launcher import EnginePlan
from gateway.engine.vllm.startup.startup_errors import explain
from gateway.errors import SettingsError

# The engine process gets this long to clean up its shared memory before it is killed.
_STOP_WITHIN_S = 5.0
# The kernel frees a killed process's memory in less.
_GONE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class EngineProcesses:
    """The processes of one start. `addresses` holds, for each client, where it meets them."""

    addresses: tuple[Mapping[str, str], ...]
    manager: Any
    coordinator: Any

    @property
    def pids(self) -> list[int]:
        """Which they are."""
        return [process.pid for process in self._processes() if process.pid is not None]

    async def wait_dead(self) -> None:
        """Return when any of them has died: one dead engine of several takes the others along."""
        loop = asyncio.get_running_loop()
        died: asyncio.Future[None] = loop.create_future()
        # Ours to close: vLLM closes its own while nobody looks.
        watched = [os.dup(process.sentinel) for process in self._processes()]
        try:
            for descriptor in watched:
                loop.add_reader(descriptor, _set_done, died)
            await died
        finally:
            for descriptor in watched:
                loop.remove_reader(descriptor)
                os.close(descriptor)

    def kill(self) -> None:
        """End processes that are stuck; they get no chance to object."""
        for process in self._processes():
            process.kill()

    async def end(self, within_s: float = _STOP_WITHIN_S) -> None:
        """End whatever is left of them, and wait until it is gone: the next engine needs its memory."""
        await launcher.run_in_daemon_thread(lambda: self.end_blocking(within_s))

    def end_blocking(self, within_s: float) -> None:
        """As `end`, in this thread."""
        self.manager.shutdown(timeout=within_s)
        if self.coordinator is not None:
            self.coordinator.shutdown()
        for process in self._processes():
            process.join(_GONE_WITHIN_S)

    def _processes(self) -> list[Any]:
        return [*self.manager.processes, *([] if self.coordinator is None else [self.coordinator.proc])]


def _set_done(died: asyncio.Future[None]) -> None:
    if not died.done():
        died.set_result(None)


class EngineProcessLauncher:
    """Starts the engine processes of `plan`, again and again."""

    def __init__(self, plan: EnginePlan) -> None:
        self._plan = plan
        self._words: Path | None = None

    async def launch(self) -> EngineProcesses:
        """Start them and wait until they are ready. Raises SettingsError, in one sentence, if they cannot start."""
        plan = self._plan
        if self._words is None:
            if wrong := launcher.find_early_problems(plan):
                raise SettingsError(*wrong)
            self._words = launcher.prepare_process(plan)
        else:
            # Stages are told once.
            plan = replace(plan, on_stage=lambda _: None)
        try:
            return await launcher.run_in_daemon_thread(lambda: _launch(plan))
        except SettingsError:
            raise
        except Exception as error:
            launcher.logger.debug("the engine could not start", exc_info=True)
            raise SettingsError(explain(error, self._words, str(plan.engine.get("model", ""))), exit_code=1) from error


def _launch(plan: EnginePlan) -> EngineProcesses:
    plan.on_stage("importing vLLM")
    from vllm.v1.engine.coordinator import DPCoordinatorProc
    from vllm.v1.engine.utils import EngineZmqAddresses, get_engine_zmq_bind_addresses, launch_core_engines
    from vllm.v1.executor import Executor

    engine_process.replace_coordinator(DPCoordinatorProc)

    def mark(engine_args: Any) -> None:
        # The front end is several processes, and this is none of them.
        engine_args._api_process_count = plan.workers
        engine_args._api_process_rank = -1

    args = launcher.parse_args(plan)
    plan.on_stage("reading the model's configuration")
    config = make_config(args, mark)
    plan.report_starting()
    # Sockets of this machine, so the clients may bind theirs when they come: until then the engine tries again.
    places = get_engine_zmq_bind_addresses(config, plan.workers)
    addresses = EngineZmqAddresses(places.inputs, places.outputs)
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
    return EngineProcesses(
        tuple(
            {"input_address": entrance, "output_address": outlet, **stats}
            for entrance, outlet in zip(places.inputs, places.outputs, strict=True)
        ),
        launched.engine_manager,
        launched.coordinator,
    )


__all__ = ["EngineProcessLauncher", "EngineProcesses"]
