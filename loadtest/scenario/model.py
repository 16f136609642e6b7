"""A scenario: the whole configuration of a run, as one frozen tree. `loadtest/scenario/loader.py` reads it from YAML.

Nothing here draws, sends or measures. Each section documents its fields; `loadtest/scenarios/` has examples.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from loadtest.scenario.arrivals import ClosedLoop, Load, TraceReplay
from loadtest.scenario.behaviours import Behaviour
from loadtest.scenario.distributions import Constant, Distribution, StrictModel
from loadtest.scenario.slo import Limit, Slo

__all__ = ["GeneratorLimits", "Limit", "Prefix", "Scenario", "Slo", "Stages", "Tenant", "Timeouts", "Workload"]


class Stages(StrictModel):
    """Only requests that are due in the measured stage count."""

    warmup_s: float = Field(5.0, ge=0)
    measure_s: float = Field(60.0, gt=0)
    drain_s: float = Field(30.0, ge=0, description="How long requests may go on after the last arrival.")

    @property
    def arrivals_s(self) -> float:
        """For how long requests arrive."""
        return self.warmup_s + self.measure_s


class Timeouts(StrictModel):
    """When a client gives up."""

    connect_s: float = Field(5.0, gt=0)
    first_byte_s: float = Field(60.0, gt=0, description="From sending to the first byte of the answer.")
    idle_s: float = Field(60.0, gt=0, description="Between two bytes; keep-alive comments count.")
    deadline_s: float = Field(600.0, gt=0, description="From sending to the end.")


class Prefix(StrictModel):
    """The beginning that prompts share, as system prompts and documents do."""

    tokens: Distribution
    groups: int = Field(1, ge=1, description="Different prefixes; each request takes one of them.")


class ModelShare(StrictModel):
    name: str = Field(min_length=1)
    share: float = Field(1.0, gt=0)


class Workload(StrictModel):
    """One kind of request."""

    name: str = Field(min_length=1)
    share: float = Field(1.0, gt=0, description="Weight among the workloads.")
    endpoint: Literal["chat", "completions"] = "chat"
    stream: bool = True
    prompt: Literal["words", "token_ids"] = Field("words", description="token_ids: for completions only.")
    prompt_tokens: Distribution = Constant(value=128)
    output_tokens: Distribution = Field(Constant(value=128), description="The value of max_tokens.")
    fixed_length: bool = Field(True, description="Have vLLM's servers ignore the end of the sequence.")
    prefix: Prefix | None = None
    turns: Distribution = Field(Constant(value=1), description="Questions of one conversation; the history grows.")
    think_s: Distribution = Field(Constant(value=0), description="Between the turns of a conversation.")
    models: tuple[ModelShare, ...] = Field((), description="Empty: the scenario's model.")
    behaviours: tuple[Behaviour, ...] = ()
    body: dict[str, Any] = Field(default_factory=dict, description="More fields of the request, sent as they are.")

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        if self.prompt == "token_ids" and self.endpoint != "completions":
            raise ValueError("prompt: token_ids needs endpoint: completions")
        if (whole := sum(one.share for one in self.behaviours)) > 1:
            raise ValueError(f"the shares of behaviours add up to {whole:g}; make it 1 or less")
        if self.behaviours and not self.stream:
            raise ValueError("behaviours are for streams; set stream: true or take them away")
        if self.endpoint != "chat" and not (isinstance(self.turns, Constant) and self.turns.value <= 1):
            raise ValueError("turns need endpoint: chat")
        return self


class Tenant(StrictModel):
    """An API key and its share of the requests. `key_env` keeps the key out of the file."""

    name: str = Field(min_length=1)
    share: float = Field(1.0, gt=0)
    key: str | None = None
    key_env: str | None = Field(None, description="The environment variable that holds the key.")

    @model_validator(mode="after")
    def _one_key(self) -> Tenant:
        if self.key is not None and self.key_env is not None:
            raise ValueError("give key or key_env, not both")
        return self


class GeneratorLimits(StrictModel):
    """Limits beyond which the generator was the bottleneck, so that the run proves nothing."""

    # 10 ms is half the time between two tokens at 50 tokens/s: beyond that, a result describes the client.
    lateness_p99_ms: float = Field(10.0, gt=0)
    loop_lag_p99_ms: float = Field(10.0, gt=0)
    # Above this, queues inside the generator grow faster than they drain.
    cpu_share_max: float = Field(0.9, gt=0)
    achieved_share_min: float = Field(0.99, ge=0, le=1)


class Scenario(StrictModel):
    name: str = Field(min_length=1)
    seed: int = 1
    model: str | None = Field(None, description="None: the first model in /v1/models.")
    stages: Stages = Stages()
    load: Load
    workloads: tuple[Workload, ...] = Field(min_length=1)
    tenants: tuple[Tenant, ...] = (Tenant(name="default"),)
    timeouts: Timeouts = Timeouts()
    max_in_flight: int = Field(10_000, ge=1, description="Of each worker; an arrival beyond it is dropped and counted.")
    tls_verify: bool = True
    verify: Literal["usage", "synthetic"] = Field(
        "usage", description="synthetic: compare every token with those of Sluice's engine without a model."
    )
    per_token_usage: bool = Field(
        True, description="Request usage in every event from vLLM's servers, to count tokens."
    )
    freed_within_s: float = Field(5.0, gt=0, description="How soon the server must be idle after the run.")
    metrics_url: str | None = Field(
        None, description="URL of the server's metrics, if not under its own URL: its management port."
    )
    metrics_urls: tuple[str, ...] = Field((), description="More places to scrape, beside the server's metrics.")
    generator: GeneratorLimits = GeneratorLimits()
    slo: Slo = Slo()

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        for what, names in (
            ("workloads", [w.name for w in self.workloads]),
            ("tenants", [t.name for t in self.tenants]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"two {what} have the same name; rename one")
        if isinstance(self.load, TraceReplay) and any(
            not (isinstance(one.turns, Constant) and one.turns.value <= 1) for one in self.workloads
        ):
            raise ValueError("a trace has its own arrivals for every turn; set turns: 1")
        return self

    @property
    def is_closed_loop(self) -> bool:
        """Whether each user waits for the answer before sending the next request."""
        return isinstance(self.load, ClosedLoop)
