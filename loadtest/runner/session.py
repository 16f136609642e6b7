"""A run inside Locust: the master plans and aggregates, workers (or a single Locust process) send the load.

Four messages suffice: the plan goes to each worker before Locust starts its users; the increase of the aggregates comes
back with Locust's own reports; each worker reports its end. The same code serves `sluice-load run`, `locust` with a web
UI, `--headless`, `--processes`, and master and workers on several machines.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.generator.health import GeneratorHealth
from loadtest.generator.load_worker import LoadWorker
from loadtest.generator.preflight import PreflightError, ping, probe
from loadtest.measure.aggregates import Aggregates
from loadtest.measure.record import Record
from loadtest.runner.run_plan import WorkerPlan, api_keys
from loadtest.runner.summarise import CollectedRun
from loadtest.scenario import traces
from loadtest.scenario.arrivals import TraceReplay
from loadtest.scenario.loader import LoadedScenario, ScenarioError, parse
from loadtest.scenario.traces import TraceError
from loadtest.scenario.workload import ServerInfo
from loadtest.server_metrics.scraper import Scraper

_PLAN, _ENDED = "load_plan", "load_ended"
# From the plan to the first arrival: time for the plan to reach every worker and for Locust to start its users.
_LEAD_S = 1.5
# How long after the drain a worker may take to report its end.
_FINISH_GRACE_S = 15.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The inputs of a run that the master prepares."""

    loaded: LoadedScenario
    server_info: ServerInfo
    keys: dict[str, str]

    @property
    def master_key(self) -> str | None:
        """The API key that the master itself uses."""
        return next(iter(self.keys.values()), None)


class Session:
    """The runs of one Locust process; one after the other, as the web UI may start several."""

    _of: dict[int, Session] = {}  # noqa: RUF012 - by Locust environment, which has no place for it

    @classmethod
    def of(cls, environment: Environment) -> Session:
        """The session of an environment. Raises KeyError if there is none."""
        return cls._of[id(environment)]

    def __init__(
        self,
        environment: Environment,
        load_scenario: Callable[[], LoadedScenario],
        on_record: Callable[[Record], object],
        out: Path | None,
    ) -> None:
        """`load_scenario`: returns the scenario of the next run when it begins; raises ScenarioError. `on_record`:
        receives each request's record, on a worker. `out`: the folder of a run that `loadtest/runner/finish.py` will
        finish."""
        self._of[id(environment)] = self
        self._environment = environment
        self._load_scenario = load_scenario
        self._on_record = on_record
        self._out = out
        self._runner: Any = environment.runner
        self._unfinished: set[int] = set()
        self._finishing: gevent.Greenlet | None = None
        self.worker: LoadWorker | None = None
        self.is_closed_loop = False
        self._inputs: RunInputs | None = None
        self.collected: CollectedRun | None = None
        self.began_s = 0.0
        self.scraper: Scraper | None = None
        self.failure: str | None = None
        self._is_prepared = False
        self.ended = Event()
        self._register()

    # On the master, and in a single process.

    def tick(self) -> tuple[int, float] | None:
        """The number of users Locust should have, and how many it may start a second; None when the run is over."""
        if not self._is_prepared and not self._prepare():
            return None
        if self.collected is not None and self._is_over(self.collected):
            return None
        load = self.inputs.loaded.scenario.load
        if load.kind == "closed":
            return load.users, load.spawn_rate
        # Locust warns above 100 per second and worker.
        return max(1, self._worker_count()), 100.0

    def _prepare(self) -> bool:
        self.failure, self.collected = None, None
        self.ended.clear()
        try:
            loaded = self._load_scenario()
            keys = api_keys(loaded)
            if not self._environment.host:
                raise ScenarioError("No server to load: give its URL (--host).")
            if isinstance(loaded.scenario.load, TraceReplay):
                # Read the whole trace once: an invalid line must not come up in the middle of a run.
                deque(
                    traces.read_trace(loaded.scenario.load, loaded.scenario.seed, loaded.scenario.stages.arrivals_s), 0
                )
            server_info = probe(loaded.scenario, self._environment.host, next(iter(keys.values()), None))
        except (ScenarioError, PreflightError, TraceError) as error:
            _log.error("%s", error)
            self.failure = str(error)
            self.ended.set()
            self._environment.process_exit_code = 2
            return False
        self._inputs, self._is_prepared = RunInputs(loaded, server_info, keys), True
        return True

    def collect(self) -> CollectedRun | None:
        """The numbers so far. In a single process Locust sends no reports, so the worker's are fetched here."""
        if self.collected is not None and self.worker is not None:
            self.collected.aggregates.merge(self.worker.aggregates.take_delta())
        return self.collected

    def _worker_count(self) -> int:
        return self._runner.worker_count if isinstance(self._runner, MasterRunner) else 1

    def _on_test_start(self, **_: Any) -> None:
        """Locust starts: the plan is sent ahead of its users."""
        if isinstance(self._runner, WorkerRunner):
            return
        # The shape has prepared the run, unless the shape was removed (the web UI's class picker does that).
        if not self._is_prepared and not self._prepare():
            return
        inputs = self.inputs
        clients = [client.id for client in self._runner.clients.ready] if self._is_master else [None]
        if self._is_master and self._out is not None:
            # Only where nothing is measured: reading a page of metrics takes as long as some tokens.
            self.scraper = Scraper(self.metrics_urls, self.headers)
            self.scraper.start()
        self.began_s = time() + _LEAD_S
        self.collected = CollectedRun(inputs.loaded.scenario, Aggregates(), len(clients))
        self._unfinished = set(range(len(clients)))
        for index, client in enumerate(clients):
            file = str(self._out / f"requests.{index}.jsonl.gz") if self._out is not None else None
            plan = WorkerPlan(
                document=inputs.loaded.document,
                server_info=inputs.server_info,
                url=self.url,
                keys=inputs.keys,
                began_s=self.began_s,
                index=index,
                count=len(clients),
                log_file=file,
            )
            self._runner.send_message(_PLAN, plan.to_dict(), client_id=client)

    @property
    def inputs(self) -> RunInputs:
        assert self._inputs is not None
        return self._inputs

    @property
    def metrics_urls(self) -> list[str]:
        scenario = self.inputs.loaded.scenario
        return [scenario.metrics_url or self.url, *scenario.metrics_urls]

    @property
    def url(self) -> str:
        return self._environment.host or ""

    def ping(self) -> None:
        """Send one small request, which causes an engine step."""
        ping(self.inputs.loaded.scenario, self.url, self.inputs.server_info.model, self.inputs.master_key)

    @property
    def headers(self) -> dict[str, str]:
        key = self.inputs.master_key
        return {} if key is None else {"Authorization": f"Bearer {key}"}

    @property
    def _is_master(self) -> bool:
        return isinstance(self._runner, MasterRunner)

    def _is_over(self, collected: CollectedRun) -> bool:
        if self.ended.is_set():
            return True
        if self._unfinished:
            stages = collected.scenario.stages
            if time() < self.began_s + stages.arrivals_s + stages.drain_s + _FINISH_GRACE_S:
                return False
            collected.notes.append(f"{len(self._unfinished)} of {collected.workers} workers did not report their end")
        self.ended.set()
        return True

    def _on_test_stop(self, **_: Any) -> None:
        """Locust has stopped, at the end of a run or before it: the next run is prepared anew."""
        self._is_prepared = False
        if not self.ended.is_set():
            if self.collected is not None:
                self.collected.notes.append("the run was stopped before its end, or lost its workers")
            self.ended.set()

    def _on_ended(self, msg: Any, **_: Any) -> None:
        assert self.collected is not None
        self.collected.aggregates.merge(msg.data["aggregates"])
        self.collected.worker_healths.append(GeneratorHealth.from_dict(msg.data["health"]))
        self.collected.notes += msg.data["failures"]
        self._unfinished.discard(msg.data["index"])

    def _on_worker_report(self, data: dict[str, Any], **_: Any) -> None:
        if self.collected is not None and "load" in data:
            self.collected.aggregates.merge(data["load"])

    # On a worker.

    def _on_plan(self, msg: Any, **_: Any) -> None:
        self._stop_worker()
        plan = WorkerPlan.from_dict(msg.data)
        scenario = parse(plan.document, "of the master")
        self.is_closed_loop = scenario.is_closed_loop
        self.worker = LoadWorker(
            scenario,
            plan.server_info,
            url=plan.url,
            keys=dict(plan.keys),
            share=plan.share(),
            log_file=Path(plan.log_file) if plan.log_file is not None else None,
            on_record=self._on_record,
        )
        self.worker.start()
        self._finishing = gevent.spawn(self._finish_worker, self.worker, plan.index)

    def _finish_worker(self, worker: LoadWorker, index: int) -> None:
        worker.join()
        ended = {
            "aggregates": worker.aggregates.take_delta(),
            "health": worker.health.to_dict(),
            "failures": worker.failures,
            "index": index,
        }
        self._runner.send_message(_ENDED, ended)

    def _on_report_to_master(self, data: dict[str, Any], **_: Any) -> None:
        if self.worker is not None:
            data["load"] = self.worker.aggregates.take_delta()

    def _stop_worker(self, **_: Any) -> None:
        """Locust stops, or a new run begins."""
        if self._finishing is not None:
            self._finishing.kill()
            self._finishing = None
        if self.worker is not None:
            self.worker.stop()
            self.worker = None

    def _on_reset_stats(self, **_: Any) -> None:
        """The button "Reset Stats" of the web UI was pressed."""
        if self.collected is not None:
            self.collected.aggregates = Aggregates()

    def _register(self) -> None:
        hooks = self._environment.events
        if isinstance(self._runner, (WorkerRunner, LocalRunner)):
            self._runner.register_message(_PLAN, self._on_plan)
            hooks.test_stop.add_listener(self._stop_worker)
        if isinstance(self._runner, WorkerRunner):
            hooks.report_to_master.add_listener(self._on_report_to_master)
        else:
            self._runner.register_message(_ENDED, self._on_ended)
            hooks.worker_report.add_listener(self._on_worker_report)
            hooks.test_start.add_listener(self._on_test_start)
            hooks.test_stop.add_listener(self._on_test_stop)
            hooks.reset_stats.add_listener(self._on_reset_stats)
