"""What the master tells each worker about a run: everything, so that a worker needs no file of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from time import perf_counter_ns, time
from typing import Any

from loadtest.generator.load_worker import Part
from loadtest.scenario.loader import Loaded, ScenarioError
from loadtest.scenario.model import Scenario
from loadtest.scenario.workload import Served

__all__ = ["Plan", "began_ns", "keys_of"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One run for one worker."""

    document: Mapping[str, Any]
    served: Served
    url: str
    keys: Mapping[str, str]
    # Wall clock, which machines share as well as they keep time; each worker carries it over to its own clock.
    began_s: float
    index: int
    count: int
    log_file: str | None

    def packed(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any]) -> Plan:
        """What `packed` made."""
        return cls(**{**packed, "served": Served(**packed["served"])})

    def part(self) -> Part:
        """On this process's clock."""
        return Part(self.index, self.count, began_ns(self.began_s))


def began_ns(began_s: float) -> int:
    """A moment of the wall clock in `perf_counter_ns`."""
    return perf_counter_ns() + int((began_s - time()) * 1e9)


def keys_of(loaded: Loaded) -> dict[str, str]:
    """The API keys by tenant. Raises ScenarioError if a variable is missing."""
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
