"""The plan of the mock: read from YAML, checked, seeded. A request's times depend on the seed and on the number of
requests before it, so that equal loads get equal answers."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Literal

import yaml
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from loadtest.mock.faults import Fault
from loadtest.scenario.distributions import Constant, Distribution, StrictModel


class PlanError(ValueError):
    """The plan cannot be used; the message names the field and the problem."""


class FaultShare(Fault):
    """A fault and its share of the requests."""

    share: float = Field(gt=0, le=1)


class Freeze(StrictModel):
    """The whole process blocks: it neither accepts, reads nor writes."""

    at_s: NonNegativeFloat
    """After the first request."""
    for_s: PositiveFloat


class MockPlan(StrictModel):
    seed: int = 1
    model: str = "mock"
    ttft_ms: Distribution = Constant(value=50)
    """From the arrival of a request's last byte (or from its slot, with `max_running`) to its first token."""
    itl_ms: Distribution = Constant(value=20)
    """From event to event of a stream; with `steps`, from step to step of the engine."""
    steps: bool = False
    """Whether all running streams get their tokens in the same instant, like a real engine's."""
    tokens_per_event: Distribution = Constant(value=1)
    """Rounded, at least 1. Servers with merging or speculative decoding send more than one."""
    output_tokens: PositiveInt = 128
    """For a request without max_tokens."""
    role: Literal["first_token", "early"] = "first_token"
    """When a chat's role chunk comes: with the first token (vLLM), or at once (some others)."""
    max_running: PositiveInt | None = None
    """Further requests wait for a slot."""
    kv_tokens: PositiveInt = 1_000_000
    """The number of tokens that is a KV cache usage of 1."""
    accept_delay_s: Distribution = Constant(value=0)
    """Between the connection and the first read."""
    freezes: tuple[Freeze, ...] = ()
    faults: tuple[FaultShare, ...] = ()

    @model_validator(mode="after")
    def _check_shares(self) -> MockPlan:
        if (total := sum(fault.share for fault in self.faults)) > 1 + 1e-9:
            raise ValueError(f"faults: the shares add up to {total:g}; make them 1 or less together")
        return self

    @classmethod
    def read(cls, path: Path) -> MockPlan:
        """Raises PlanError or OSError."""
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls.model_validate({} if document is None else document)
        except yaml.YAMLError as error:
            raise PlanError(f"{path}: not YAML: {error}") from error
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, one['loc'])) or 'plan'}: {one['msg']}" for one in error.errors()]
            raise PlanError(f"{path}: " + "; ".join(lines)) from error

    def make_rng(self, purpose: int | str) -> Random:
        """The random generator for the request of that number, or for another purpose."""
        return Random(f"{self.seed}/{purpose}")

    def choose_fault(self, rng: Random) -> Fault | None:
        """The fault of a request, if any."""
        if not self.faults:
            return None
        place = rng.random()
        for fault in self.faults:
            place -= fault.share
            if place < 0:
                return fault
        return None
