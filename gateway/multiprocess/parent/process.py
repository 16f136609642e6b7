"""The parent process of several workers: the sockets, the engine processes, the gate, signals, and the exit code.

No token passes through it. A worker that dies is not replaced: vLLM's engine has a fixed set of clients from its start,
and the streams of the dead worker are lost. The others finish theirs, and then the server exits for its supervisor
(such as Kubernetes) to start it again.
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
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from gateway import server, shutdown
from gateway.admission.gate import Gate
from gateway.clock import Clock, SystemClock
from gateway.domain import Cause
from gateway.engine.shared import EngineProcesses
from gateway.engine.supervisor import Supervisor
from gateway.engine_plan import engine_processes, plan_engine
from gateway.errors import SettingsError
from gateway.logs import StartupLog
from gateway.multiprocess import messages
from gateway.multiprocess.messages import Message, ParentMessage
from gateway.multiprocess.parent.engine_host import HostedEngine
from gateway.multiprocess.parent.permit_server import NullGateMetrics
from gateway.multiprocess.parent.worker_handle import CHECK_EVERY_S, WorkerHandle, spawn
from gateway.multiprocess.worker.process import ServeOptions, main
from gateway.preflight import check_files
from gateway.settings import Settings

logger = logging.getLogger("sluice")

# After the end of its drain, a worker has this long to end its streams and to exit.
_EXIT_WITHIN_S = 10.0
# The same after a second signal.
_EXIT_NOW_WITHIN_S = 4.0


def serve(settings: Settings, options: ServeOptions, log: StartupLog) -> int:
    """Serve with several workers until a signal or a failure; returns the exit code."""
    check_files(settings)
    server.load_certificates(settings.server)
    listeners = server.listen(settings.server)
    url = server.log_addresses(settings.server, listeners, log)
    plan = plan_engine(settings, options.model, options.flags, options.file, log.begin)
    # Readable by this user alone: a worker trusts every request on its socket in this folder.
    folder = Path(tempfile.mkdtemp(prefix="sluice-workers-"))

    def announce(model: str, has_chat: bool) -> None:
        server.log_ready(log, url, settings, model, has_chat)

    parent = ParentProcess(settings, engine_processes(plan), announce, SystemClock())
    parent.force_exit_after = shutdown.force_exit_after
    try:
        for number, sock in enumerate(listeners.main):
            # The first worker serves the management port for all.
            parent.spawn_worker(number, options, sock, listeners.management if number == 0 else None, folder)
        code = asyncio.run(parent.run())
    finally:
        parent.kill_workers()
        listeners.close()
        shutil.rmtree(folder, ignore_errors=True)
    shutdown.log_end(parent.reason, code, parent.endings, log.elapsed_s)
    if parent.failure is not None:
        print(f"sluice: {parent.failure}", file=sys.stderr)
    return shutdown.exit_process(code, hurry=parent.is_starting_engine)


class ParentProcess:
    """Workers, engine and gate of one server."""

    def __init__(
        self,
        settings: Settings,
        start_processes: Callable[[], Awaitable[EngineProcesses]],
        on_ready: Callable[[str, bool], None],
        clock: Clock,
    ) -> None:
        """`on_ready` gets the model's name, and whether it answers chats."""
        self._settings = settings
        self._on_ready = on_ready
        self._clock = clock
        self._engine = HostedEngine(start_processes, self._send, settings.server.workers)
        self._supervisor: Supervisor[HostedEngine] = Supervisor(
            self._engine.launch,
            max_restarts=settings.supervisor.max_restarts,
            window_s=settings.supervisor.window_s,
            clock=self._clock,
            # The workers pause their streams and count restarts themselves.
            on_lost=lambda: None,
            on_recovered=lambda _: None,
        )
        self._gate = Gate(**dict(settings.admission), clock=clock, instrumentation=NullGateMetrics())
        self._workers: list[WorkerHandle] = []
        self.failure: SettingsError | None = None
        self._deadline_s: float | None = None
        """When running requests have to be over; set when the drain begins."""
        self._signals: tuple[str, ...] = ()
        self._is_immediate = False
        """Whether running requests are ended without a drain."""
        self.endings: Counter[Cause] = Counter()
        """How many requests have ended by each cause, in the workers that have reported it."""
        self.force_exit_after: Callable[[float, int], None] = lambda within_s, code: None
        self._over = asyncio.Event()
        self.is_starting_engine = False
        """Whether, at the end, an engine is being started in a thread that cannot be stopped."""

    def spawn_worker(
        self, number: int, options: ServeOptions, sock: socket.socket, management: socket.socket | None, folder: Path
    ) -> None:
        """Start a worker on these sockets. They are closed here: the kernel must not queue connections at a socket from
        which this process does not accept."""
        ours, theirs = socket.socketpair()
        place = (number, self._settings.server.workers, theirs, folder)
        process = spawn(main, (self._settings, options, place, sock, management), f"worker-{number}")
        theirs.close()
        sock.close()
        if management is not None:
            management.close()
        self.add_worker(WorkerHandle(number, process, ours, self._gate))

    def add_worker(self, worker: WorkerHandle) -> None:
        """Called for each worker before `run`, in the order of their numbers."""
        self._workers.append(worker)

    async def run(self) -> int:
        """Run until the server has to end; returns the exit code."""
        loop = asyncio.get_running_loop()
        for worker in self._workers:
            await worker.open()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        receiving = [loop.create_task(self._receive(worker)) for worker in self._workers]
        supervising = loop.create_task(self._supervisor.run_until_failure(self._on_engine_ready, self._fail))
        while not self._over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), CHECK_EVERY_S)
            for worker in self._workers:
                worker.check()
            if self._deadline_s is not None and self._clock.now() > self._deadline_s + _EXIT_WITHIN_S:
                logger.error("a worker has not finished in time; ending now")
                self._end_now()
        self.is_starting_engine = self._supervisor.is_launching
        # First, so that no other engine is started, whatever happens to this one now.
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
        left_s = max(0.0, (self._deadline_s or 0.0) - self._clock.now())
        left_s += _EXIT_NOW_WITHIN_S if self._is_immediate else _EXIT_WITHIN_S
        self.force_exit_after(left_s + shutdown.EXIT_WITHIN_S, 1)
        await asyncio.gather(*(worker.join(left_s) for worker in self._workers))
        await asyncio.gather(*receiving, return_exceptions=True)
        await self._supervisor.stop()
        return 0 if self.failure is None else self.failure.exit_code

    @property
    def reason(self) -> str:
        """Why the server has ended."""
        return "a failure" if self.failure is not None else ", then ".join(self._signals)

    def kill_workers(self) -> None:
        """Kill the workers that are left after an error: the interpreter's exit would wait for them."""
        for worker in self._workers:
            worker.process.kill()

    def _on_engine_ready(self) -> None:
        ready = self._engine.ready_message
        self._on_ready(ready.model, ready.has_chat)

    # Messages.

    async def _receive(self, worker: WorkerHandle) -> None:
        await worker.receive(self._handle)
        if self._over.is_set() or self.failure is not None:
            return
        await asyncio.to_thread(worker.process.join, 1.0)
        self.failure = SettingsError(
            f"Worker {worker.number} died (exit code {worker.process.exitcode}) and its streams with it; the server "
            "ends, to be started again.",
            exit_code=1,
        )
        logger.error("worker %d died: no new requests, those of the other workers may finish", worker.number)
        survivors = [one for one in self._workers if not one.is_gone]
        if survivors:
            survivors[0].send(messages.AbortClient(worker.number))
        self._drain()
        self._shut_down_if_drained()

    def _handle(self, worker: WorkerHandle, message: Message) -> None:
        match message:
            case messages.WorkerReady():
                self._engine.on_worker_ready(worker.number, message)
            case messages.EngineUnresponsive(generation):
                # To workers that exit, their engine may look dead.
                if not self._over.is_set():
                    self._engine.on_unresponsive(worker.number, generation)
            case messages.WorkerFailed(text, exit_code):
                self._fail(SettingsError(text, exit_code=exit_code))
            case messages.WorkerDrained():
                worker.is_drained = True
                self._shut_down_if_drained()
            case messages.WorkerClosed(endings):
                self.endings.update({Cause(name): count for name, count in endings.items()})
            case _:
                raise AssertionError(f"not a message for the parent process: {message}")

    def _send(self, number: int, message: ParentMessage) -> None:
        self._workers[number].send(message)

    def _send_all(self, message: ParentMessage) -> None:
        for worker in self._workers:
            worker.send(message)

    # The end.

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self._signals:
            # A first signal drains even where the death of a worker has begun a drain already.
            logger.info("%s: no new requests, running ones may finish (again to end now)", name)
            self._drain()
        else:
            logger.warning("%s: ending now", name)
            self.force_exit_after(_EXIT_NOW_WITHIN_S + shutdown.FORCED_EXIT_WITHIN_S, 1)
            self._end_now()
        self._signals = (*self._signals, name)

    def _drain(self) -> None:
        if self._deadline_s is None:
            timeout_s = self._settings.server.drain_timeout_s
            self._deadline_s = self._clock.now() + timeout_s
            self._send_all(messages.Drain(timeout_s))

    def _shut_down_if_drained(self) -> None:
        if all(worker.is_drained or worker.is_gone for worker in self._workers):
            self._shut_down(messages.Shutdown())

    def _end_now(self) -> None:
        self._is_immediate = True
        self._shut_down(messages.ShutdownNow())

    def _fail(self, error: SettingsError) -> None:
        """The server cannot go on. Its requests have failed already, so there is no drain."""
        if self.failure is None and self._deadline_s is None:
            self.failure = error
            self._send_all(messages.EngineAbandoned(str(error)))
            self._shut_down(messages.Shutdown())

    def _shut_down(self, message: ParentMessage) -> None:
        self._deadline_s = self._clock.now()
        self._send_all(message)
        self._over.set()
