"""The parent process of several workers: the sockets, the engine processes, the gate, signals, and the exit code.

It never touches a token. A worker that dies is not replaced: vLLM's engine knows its clients from its start, and the
streams of the dead one are lost with it. The others finish theirs, and then the process ends for its supervisor (such
as Kubernetes) to start it again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gateway import app, server, shutdown
from gateway.clock import SystemClock
from gateway.domain import Cause
from gateway.engine.base import RecoveryReport
from gateway.engine.supervisor import Supervisor
from gateway.errors import SettingsError
from gateway.logs import StartupLog
from gateway.multiprocess.messages import (
    AbortClient,
    Drain,
    EngineAbandoned,
    EngineUnresponsive,
    Message,
    ParentMessage,
    Shutdown,
    ShutdownNow,
    WorkerClosed,
    WorkerDrained,
    WorkerFailed,
    WorkerReady,
)
from gateway.multiprocess.parent.engine_host import HostedEngine
from gateway.multiprocess.parent.permit_server import NullGateMetrics
from gateway.multiprocess.parent.worker_handle import CHECK_EVERY_S, WorkerHandle, spawn
from gateway.multiprocess.worker.process import ServeOptions, main
from gateway.preflight import check_files
from gateway.settings import Settings

logger = logging.getLogger("sluice")

# From the end of its time to finish, a worker gets so long to tell its clients and to go.
_LEAVE_WITHIN_S = 10.0
# And if it is to end now.
_END_NOW_WITHIN_S = 4.0


def serve(settings: Settings, wanted: ServeOptions, watch: StartupLog) -> int:
    """Serve with several workers until a signal or a failure; returns the exit code."""
    check_files(settings)
    server.load_certificates(settings.server)
    listeners = server.listen(settings.server)
    url = server.log_addresses(settings.server, listeners, watch)
    # Of this user alone: what comes in through its sockets is taken for a worker's word.
    folder = Path(tempfile.mkdtemp(prefix="sluice-workers-"))
    house = ParentProcess(settings, wanted, watch, url)
    house.force_in = shutdown.force_exit_after
    try:
        for number, sock in enumerate(listeners.main):
            # One of them answers for all on the management port.
            house.spawn_worker(number, sock, listeners.management if number == 0 else None, folder)
        code = asyncio.run(house.run())
    finally:
        house.kill_workers()
        listeners.close()
        shutil.rmtree(folder, ignore_errors=True)
    shutdown.log_end(house.reason, code, house.endings, watch.elapsed_s)
    if house.failure is not None:
        print(f"sluice: {house.failure}", file=sys.stderr)
    return shutdown.exit_process(code, hurry=house.is_starting_engine)


class ParentProcess:
    """Workers, engine and gate of one server."""

    def __init__(self, settings: Settings, wanted: ServeOptions, watch: StartupLog, url: str) -> None:
        self._settings = settings
        self._wanted = wanted
        self._watch = watch
        self._url = url
        self._clock = SystemClock()
        plan = app.plan_engine(settings, wanted.model, wanted.flags, wanted.file, watch.begin)
        self._engines = HostedEngine(app.engine_processes(plan), self._send, settings.server.workers)
        self._supervisor: Supervisor[HostedEngine] = Supervisor(
            self._engines.launch,
            max_restarts=settings.supervisor.max_restarts,
            window_s=settings.supervisor.window_s,
            clock=self._clock,
            on_lost=_ignore,
            on_regained=_ignore_revival,
        )
        self._gate = app.make_gate(settings, self._clock, NullGateMetrics())
        self._workers: list[WorkerHandle] = []
        self.failure: SettingsError | None = None
        self._deadline_s: float | None = None
        """When running requests have to be over; set when the draining begins."""
        self._signals: tuple[str, ...] = ()
        self._now = False
        """Whether nobody is waited for."""
        self.endings: Counter[Cause] = Counter()
        """How often requests have ended in each way, as far as the workers have told."""
        self.force_in: Callable[[float, int], None] = lambda within_s, code: None
        self._over = asyncio.Event()
        self.is_starting_engine = False
        """Whether an engine is being started at the end, in a thread that will not stop."""

    def spawn_worker(self, number: int, sock: socket.socket, management: socket.socket | None, folder: Path) -> None:
        """Start a worker on these sockets, which are then the worker's alone: the kernel must not give connections to a
        socket that nobody accepts from."""
        ours, theirs = socket.socketpair()
        seat = (number, self._settings.server.workers, theirs, folder)
        process = spawn(main, (self._settings, self._wanted, seat, sock, management), f"worker-{number}")
        theirs.close()
        sock.close()
        if management is not None:
            management.close()
        self._workers.append(WorkerHandle(number, process, ours, self._gate))

    async def run(self) -> int:
        """Until there is a reason to end; the exit code."""
        loop = asyncio.get_running_loop()
        for member in self._workers:
            await member.open()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        following = [loop.create_task(self._receive(member)) for member in self._workers]
        running = loop.create_task(self._supervisor.run_until_failure(self._ready, self._fail))
        while not self._over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), CHECK_EVERY_S)
            for member in self._workers:
                member.check()
            if self._deadline_s is not None and self._clock.now() > self._deadline_s + _LEAVE_WITHIN_S:
                logger.error("a worker has not finished in time; ending now")
                self._end_now()
        self.is_starting_engine = self._supervisor.is_launching
        # First: whatever becomes of the engine now, nobody needs another one.
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        left_s = max(0.0, (self._deadline_s or 0.0) - self._clock.now())
        left_s += _END_NOW_WITHIN_S if self._now else _LEAVE_WITHIN_S
        self.force_in(left_s + shutdown.EXIT_WITHIN_S, 1)
        await asyncio.gather(*(member.join(left_s) for member in self._workers))
        await asyncio.gather(*following, return_exceptions=True)
        await self._supervisor.stop()
        return 0 if self.failure is None else self.failure.exit_code

    @property
    def reason(self) -> str:
        """Why the server has ended."""
        return "a failure" if self.failure is not None else ", then ".join(self._signals)

    def kill_workers(self) -> None:
        """End what is left, where something went wrong: the interpreter's exit would wait for it."""
        for member in self._workers:
            member.process.kill()

    # The engine.

    def _ready(self) -> None:
        served = self._engines.ready_message
        server.log_ready(self._watch, self._url, self._settings, served.model, served.has_chat)

    # The workers.

    async def _receive(self, member: WorkerHandle) -> None:
        await member.receive(self._handle)
        if self._over.is_set() or self.failure is not None:
            return
        await asyncio.to_thread(member.process.join, 1.0)
        self.failure = SettingsError(
            f"Worker {member.number} died (exit code {member.process.exitcode}) and its streams with it; the server "
            "ends, to be started again.",
            exit_code=1,
        )
        logger.error("worker %d died: no new requests, those of the other workers may finish", member.number)
        survivors = [one for one in self._workers if not one.is_gone]
        if survivors:
            survivors[0].send(AbortClient(member.number))
        self._drain()
        self._shut_down_if_drained()

    def _handle(self, member: WorkerHandle, message: Message) -> None:
        match message:
            case WorkerReady():
                self._engines.on_worker_ready(member.number, message)
            case EngineUnresponsive(generation):
                if self._over.is_set():
                    # To workers that leave, their engine may look dead.
                    return
                self._engines.on_unresponsive(member.number, generation)
            case WorkerFailed(text, exit_code):
                self._fail(SettingsError(text, exit_code=exit_code))
            case WorkerDrained():
                member.is_drained = True
                self._shut_down_if_drained()
            case WorkerClosed(endings):
                self.endings.update({Cause(name): count for name, count in endings.items()})
            case _:
                raise AssertionError("the house says this, and does not hear it")

    def _send(self, number: int, message: ParentMessage) -> None:
        self._workers[number].send(message)

    def _send_all(self, message: ParentMessage) -> None:
        for member in self._workers:
            member.send(message)

    # The end.

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self._signals:
            # Also where the death of a worker has begun the same already.
            logger.info("%s: no new requests, running ones may finish (again to end now)", name)
            self._drain()
        else:
            logger.warning("%s: ending now", name)
            self.force_in(_END_NOW_WITHIN_S + shutdown.FORCED_EXIT_WITHIN_S, 1)
            self._end_now()
        self._signals = (*self._signals, name)

    def _drain(self) -> None:
        if self._deadline_s is None:
            timeout_s = self._settings.server.drain_timeout_s
            self._deadline_s = self._clock.now() + timeout_s
            self._send_all(Drain(timeout_s))

    def _shut_down_if_drained(self) -> None:
        if all(member.is_drained or member.is_gone for member in self._workers):
            self._deadline_s = self._clock.now()
            self._send_all(Shutdown())
            self._over.set()

    def _end_now(self) -> None:
        self._now = True
        self._deadline_s = self._clock.now()
        self._send_all(ShutdownNow())
        self._over.set()

    def _fail(self, error: SettingsError) -> None:
        """The server cannot go on. What runs has failed, and needs no time."""
        if self.failure is None and self._deadline_s is None:
            self.failure = error
            self._deadline_s = self._clock.now()
            self._send_all(EngineAbandoned(str(error)))
            self._send_all(Shutdown())
            self._over.set()


def _ignore() -> None:
    """The workers tell their streams."""


def _ignore_revival(_: RecoveryReport) -> None:
    """And count."""


__all__ = ["ParentProcess", "ServeOptions", "serve"]
