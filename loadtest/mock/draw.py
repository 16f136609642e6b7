"""A distribution as a plan names it: a number for a constant, or `{kind: lognormal, mean: 200, cv: 0.3}`."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

__all__ = ["Draw", "sampler"]


class _Draw(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Draw):
    kind: Literal["constant"] = "constant"
    value: NonNegativeFloat

    def sampler(self, rng: Random) -> Callable[[], float]:
        value = self.value
        return lambda: value


class Uniform(_Draw):
    kind: Literal["uniform"]
    low: NonNegativeFloat
    high: NonNegativeFloat

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.high < self.low:
            raise ValueError("high is below low; exchange them")
        return self

    def sampler(self, rng: Random) -> Callable[[], float]:
        return lambda: rng.uniform(self.low, self.high)


class Lognormal(_Draw):
    """`cv`: standard deviation over mean."""

    kind: Literal["lognormal"]
    mean: PositiveFloat
    cv: PositiveFloat

    def sampler(self, rng: Random) -> Callable[[], float]:
        variance = math.log1p(self.cv**2)
        mu, sigma = math.log(self.mean) - variance / 2, math.sqrt(variance)
        return lambda: rng.lognormvariate(mu, sigma)


class Exponential(_Draw):
    kind: Literal["exponential"]
    mean: PositiveFloat

    def sampler(self, rng: Random) -> Callable[[], float]:
        rate = 1 / self.mean
        return lambda: rng.expovariate(rate)


class Choice(_Draw):
    """One of `values`, each as likely as its weight says (all alike without weights)."""

    kind: Literal["choice"]
    values: list[NonNegativeFloat] = Field(min_length=1)
    weights: list[PositiveFloat] | None = None

    @model_validator(mode="after")
    def _paired(self) -> Choice:
        if self.weights is not None and len(self.weights) != len(self.values):
            raise ValueError(f"weights has {len(self.weights)} entries and values {len(self.values)}; give each one")
        return self

    def sampler(self, rng: Random) -> Callable[[], float]:
        return lambda: rng.choices(self.values, self.weights)[0]


def _number(value: Any) -> Any:
    return {"kind": "constant", "value": value} if isinstance(value, int | float) else value


Draw = Annotated[
    Annotated[Constant | Uniform | Lognormal | Exponential | Choice, Field(discriminator="kind")],
    BeforeValidator(_number),
]


def sampler(draw: Draw, rng: Random) -> Callable[[], float]:
    """What gives one value after the other; the same for the same state of `rng`."""
    return draw.sampler(rng)
