"""`sluice-load run`: Locust without its command line, with the master in this process and workers in processes of their
own.

Even a single worker has its own process: scraping the server's metrics and drawing the report must not delay a token.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
from locust.env import Environment
from locust.runners import MasterRunner

from loadtest.generator.preflight import PreflightError
from loadtest.measure.result import Result
from loadtest.runner import finish
from loadtest.runner.locust_users import LoadShape, LoadUser
from loadtest.runner.session import Session
from loadtest.scenario.loader import LoadedScenario

_LOCUSTFILE = Path(__file__).parents[1] / "locustfile.py"
# Importing Locust takes a second or two; on a busy machine with many workers much longer.
_WORKERS_WITHIN_S = 120.0
_PROGRESS_EVERY_S = 5.0

OnProgress = Callable[[str], object]


def run_scenario(
    loaded: LoadedScenario, url: str, out: Path, workers: int, command: str, on_progress: OnProgress
) -> Result:
    """Run a scenario against a server and write the results to `out`.

    Raises PreflightError or ScenarioError if it cannot begin."""
    out.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    environment = Environment(user_classes=[LoadUser], shape_class=LoadShape(), host=url)
    runner = environment.create_master_runner("127.0.0.1", port)
    session = Session(environment, lambda: loaded, lambda _: None, out)
    try:
        with _worker_processes(workers, port) as children:
            _wait_for_workers(runner, children, workers)
            runner.start_shape()
            _report_progress(session, on_progress)
            runner.quit()
            for child in children:
                child.wait(15)
    finally:
        runner.server.close()
    if session.failure is not None:
        raise PreflightError(session.failure)
    return finish.finish_run(session, out, command)


@contextmanager
def _worker_processes(count: int, port: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Worker processes, all of which are ended on exit."""
    path = os.pathsep.join([str(_LOCUSTFILE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = ["-m", "locust", "-f", str(_LOCUSTFILE), "--worker", "--loglevel", "WARNING"]
    arguments += ["--master-host", "127.0.0.1", "--master-port", str(port)]
    children = [
        subprocess.Popen([sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path})  # noqa: S603
        for _ in range(count)
    ]
    try:
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()


def _wait_for_workers(runner: MasterRunner, children: list[subprocess.Popen[bytes]], count: int) -> None:
    deadline = time.monotonic() + _WORKERS_WITHIN_S
    while len(runner.clients.ready) < count:
        ended_child = next((child for child in children if child.poll() is not None), None)
        if ended_child is not None:
            raise PreflightError(f"A worker process ended during its start, with exit code {ended_child.returncode}.")
        if time.monotonic() > deadline:
            raise PreflightError(f"The {count} worker processes did not start within {_WORKERS_WITHIN_S:g} s.")
        gevent.sleep(0.05)


def _report_progress(session: Session, on_progress: OnProgress) -> None:
    """Report the progress until the run is over."""
    while not session.ended.wait(_PROGRESS_EVERY_S):
        collected = session.collected
        at_s = int(time.time() - session.began_s)
        if collected is None or at_s < 1:
            continue
        stages, seconds = collected.scenario.stages, collected.aggregates.seconds
        stage = "warm-up" if at_s < stages.warmup_s else "measuring" if at_s < stages.arrivals_s else "drain"
        # Workers report every three seconds.
        last = [seconds[number] for number in range(max(0, at_s - 8), at_s - 3) if number in seconds]
        if not last:
            continue
        ended, failed = (
            sum(second.ended for second in seconds.values()),
            sum(second.errors.total() for second in seconds.values()),
        )
        on_progress(
            f"[{at_s:4d} s] {stage}: {last[-1].in_flight} in flight, {ended} ended, {failed} errors, "
            f"{sum(second.output_tokens for second in last) / len(last):.0f} tokens/s"
        )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
