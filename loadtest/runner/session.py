"""A run inside Locust: the master plans and adds up, workers (or Locust alone in one process) do it.

Four messages are all: the plan goes to each worker before Locust starts its users; what was counted comes back with
Locust's own reports; each worker says when it has ended. The same code serves `sluice-load run`, `locust` with a web
UI, `--headless`, `--processes` and master and workers on several machines.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.generator.health import Health
from loadtest.generator.load_worker import Host
from loadtest.generator.preflight import PreflightError, look, poke
from loadtest.measure.aggregates import Tally
from loadtest.measure.record import Record
from loadtest.runner.run_plan import Plan, keys_of
from loadtest.runner.summarise import Counted
from loadtest.scenario import traces
from loadtest.scenario.arrivals import Trace
from loadtest.scenario.loader import Loaded, ScenarioError, parse
from loadtest.scenario.traces import TraceError
from loadtest.scenario.workload import Served
from loadtest.server_metrics.scraper import Scraper

__all__ = ["Session"]

_PLAN, _ENDED = "load_plan", "load_ended"
# From the plan to the first arrival: time for the plan to reach every worker and for Locust to start its users.
_LEAD_S = 1.5
# How long after the drain a worker may take to say that it has ended.
_LATE_S = 15.0
_log = logging.getLogger(__name__)


class Session:
    """What one Locust process knows of runs; one after the other, as the web UI may start several."""

    _of: dict[int, Session] = {}  # noqa: RUF012 - by Locust environment, which has no place for it

    @classmethod
    def of(cls, environment: Environment) -> Session:
        """The session of an environment. Raises KeyError if there is none."""
        return cls._of[id(environment)]

    def __init__(
        self, environment: Environment, choose: Callable[[], Loaded], tell: Callable[[Record], object], out: Path | None
    ) -> None:
        """`choose`: the scenario of the next run, when it begins; raises ScenarioError. `tell`: what Locust is to be
        told of each request. `out`: the folder of a run that will be concluded (`loadtest/runner/finish.py`)."""
        self._of[id(environment)] = self
        self._environment = environment
        self._choose = choose
        self._tell = tell
        self._out = out
        self._runner: Any = environment.runner
        self._waiting: set[int] = set()
        self._running: gevent.Greenlet | None = None
        self.host: Host | None = None
        self.is_closed = False
        self.loaded: Loaded | None = None
        self.served: Served | None = None
        self.counted: Counted | None = None
        self.began_s = 0.0
        self._keys: dict[str, str] = {}
        self.scraper: Scraper | None = None
        self.failure: str | None = None
        self._prepared = False
        self.ended = Event()
        self._listen()

    # The master's side, and that of a process alone.

    def tick(self) -> tuple[int, float] | None:
        """How many users Locust should have, and how many it may start a second; None when the run is over."""
        if not self._prepared and not self._prepare():
            return None
        assert self.loaded is not None
        if self.counted is not None and self._is_over():
            return None
        load = self.loaded.scenario.load
        if load.kind == "closed":
            return load.users, load.spawn_rate
        # Locust warns above 100 per second and worker.
        return max(1, self._workers()), 100.0

    def _prepare(self) -> bool:
        self.failure, self.counted = None, None
        self.ended.clear()
        try:
            loaded = self._choose()
            keys = keys_of(loaded)
            if not self._environment.host:
                raise ScenarioError("No server to load: give its URL (--host).")
            if isinstance(loaded.scenario.load, Trace):
                # All of it, once: a line that cannot be read must not come up in the middle of a run.
                deque(traces.arrivals(loaded.scenario.load, loaded.scenario.seed, loaded.scenario.stages.arrivals_s), 0)
            self.served = look(loaded.scenario, self._environment.host, next(iter(keys.values()), None))
        except (ScenarioError, PreflightError, TraceError) as error:
            _log.error("%s", error)
            self.failure = str(error)
            self.ended.set()
            self._environment.process_exit_code = 2
            return False
        self.loaded, self._keys, self._prepared = loaded, keys, True
        return True

    def refresh(self) -> Counted | None:
        """What has been counted so far; in one process alone nobody reports, so it is fetched."""
        if self.counted is not None and self.host is not None:
            self.counted.tally.merge(self.host.tally.take())
        return self.counted

    def _workers(self) -> int:
        return self._runner.worker_count if isinstance(self._runner, MasterRunner) else 1

    def _begin(self, **_: Any) -> None:
        """Locust starts: the plan goes out ahead of its users."""
        if isinstance(self._runner, WorkerRunner):
            return
        # The shape has prepared it, unless somebody took the shape away (the web UI's class picker does).
        if not self._prepared and not self._prepare():
            return
        assert self.loaded is not None
        assert self.served is not None
        clients = [client.id for client in self._runner.clients.ready] if self._workers_are_others else [None]
        if self._workers_are_others and self._out is not None:
            # Only where nothing is measured: reading a page of metrics takes as long as some tokens.
            self.scraper = Scraper(self.metrics_urls, self.headers)
            self.scraper.start()
        self.began_s = time() + _LEAD_S
        self.counted = Counted(self.loaded.scenario, Tally(), len(clients))
        self._waiting = set(range(len(clients)))
        for index, client in enumerate(clients):
            file = str(self._out / f"requests.{index}.jsonl.gz") if self._out is not None else None
            plan = Plan(
                document=self.loaded.document,
                served=self.served,
                url=self.url,
                keys=self._keys,
                began_s=self.began_s,
                index=index,
                count=len(clients),
                log_file=file,
            )
            self._runner.send_message(_PLAN, plan.packed(), client_id=client)

    @property
    def metrics_urls(self) -> list[str]:
        """Where the server shows its metrics."""
        assert self.loaded is not None
        scenario = self.loaded.scenario
        return [scenario.metrics_url or self.url, *scenario.metrics_urls]

    @property
    def url(self) -> str:
        """The server."""
        return self._environment.host or ""

    def nudge(self) -> None:
        """One small request, which has an engine take a step."""
        assert self.loaded is not None
        assert self.served is not None
        poke(self.loaded.scenario, self.url, self.served.model, self.headers)

    @property
    def headers(self) -> dict[str, str]:
        """The key that the master itself uses."""
        key = next(iter(self._keys.values()), None)
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    @property
    def _workers_are_others(self) -> bool:
        return isinstance(self._runner, MasterRunner)

    def _is_over(self) -> bool:
        assert self.loaded is not None
        assert self.counted is not None
        if self.ended.is_set():
            return True
        if self._waiting:
            stages = self.loaded.scenario.stages
            if time() < self.began_s + stages.arrivals_s + stages.drain_s + _LATE_S:
                return False
            self.counted.notes.append(
                f"{len(self._waiting)} of {self.counted.workers} workers never said that they had ended"
            )
        self.ended.set()
        return True

    def _forget(self, **_: Any) -> None:
        """Locust has stopped, at the end of a run or before it: the next one begins from the start."""
        self._prepared = False
        if not self.ended.is_set():
            if self.counted is not None:
                self.counted.notes.append("it was stopped before its end, or lost its workers")
            self.ended.set()

    def _on_ended(self, msg: Any, **_: Any) -> None:
        assert self.counted is not None
        self.counted.tally.merge(msg.data["tally"])
        self.counted.healths.append(Health.unpacked(msg.data["health"]))
        self.counted.notes += msg.data["failures"]
        self._waiting.discard(msg.data["index"])

    def _on_report(self, data: dict[str, Any], **_: Any) -> None:
        if self.counted is not None and "load" in data:
            self.counted.tally.merge(data["load"])

    # The worker's side.

    def _on_plan(self, msg: Any, **_: Any) -> None:
        self._stop()
        plan = Plan.unpacked(msg.data)
        scenario = parse(plan.document, "of the master")
        self.is_closed = scenario.is_closed
        self.host = Host(
            scenario,
            plan.served,
            url=plan.url,
            keys=dict(plan.keys),
            part=plan.part(),
            log_file=Path(plan.log_file) if plan.log_file is not None else None,
            on_record=self._tell,
        )
        self.host.start()
        self._running = gevent.spawn(self._finish, self.host, plan.index)

    def _finish(self, host: Host, index: int) -> None:
        host.join()
        ended = {"tally": host.tally.take(), "health": host.health.packed(), "failures": host.failures, "index": index}
        self._runner.send_message(_ENDED, ended)

    def _report(self, data: dict[str, Any], **_: Any) -> None:
        if self.host is not None:
            data["load"] = self.host.tally.take()

    def _stop(self, **_: Any) -> None:
        """Locust stops, or a new run begins."""
        if self._running is not None:
            self._running.kill()
            self._running = None
        if self.host is not None:
            self.host.stop()
            self.host = None

    def _cleared(self, **_: Any) -> None:
        """Somebody pressed "Reset Stats"."""
        if self.counted is not None and self.loaded is not None:
            self.counted.tally = Tally()

    def _listen(self) -> None:
        hooks = self._environment.events
        if isinstance(self._runner, (WorkerRunner, LocalRunner)):
            self._runner.register_message(_PLAN, self._on_plan)
            hooks.test_stop.add_listener(self._stop)
        if isinstance(self._runner, WorkerRunner):
            hooks.report_to_master.add_listener(self._report)
        else:
            self._runner.register_message(_ENDED, self._on_ended)
            hooks.worker_report.add_listener(self._on_report)
            hooks.test_start.add_listener(self._begin)
            hooks.test_stop.add_listener(self._forget)
            hooks.reset_stats.add_listener(self._cleared)
