"""The plan of a run that the master sends to each worker: complete, so that a worker needs no file of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from time import perf_counter_ns, time
from typing import Any

from loadtest.generator.load_worker import WorkerShare
from loadtest.scenario.loader import LoadedScenario, ScenarioError
from loadtest.scenario.model import Scenario
from loadtest.scenario.workload import ServerInfo


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One run for one worker."""

    document: Mapping[str, Any]
    server_info: ServerInfo
    url: str
    keys: Mapping[str, str]
    # Wall clock, which machines share as exactly as they are synchronised; each worker converts it to its own clock.
    began_s: float
    index: int
    count: int
    log_file: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> WorkerPlan:
        return cls(**{**document, "server_info": ServerInfo(**document["server_info"])})

    def share(self) -> WorkerShare:
        """With times on this process's clock."""
        return WorkerShare(self.index, self.count, to_perf_counter_ns(self.began_s))


def to_perf_counter_ns(began_s: float) -> int:
    """A moment of the wall clock in `perf_counter_ns`."""
    return perf_counter_ns() + int((began_s - time()) * 1e9)


def api_keys(loaded: LoadedScenario) -> dict[str, str]:
    """API keys by tenant. Raises ScenarioError if an environment variable is missing."""
    scenario: Scenario = loaded.scenario
    keys = {}
    for number, tenant in enumerate(scenario.tenants):
        if tenant.key is not None:
            keys[tenant.name] = tenant.key
        elif tenant.key_env is not None:
            if not (value := os.environ.get(tenant.key_env)):
                raise ScenarioError(
                    f"tenants[{number}].key_env: the environment variable {tenant.key_env} is not set; export it."
                )
            keys[tenant.name] = value
    return keys
