"""Random numbers of scenarios and mock plans: lengths in tokens, numbers of turns, think times, latencies.

A plain number is a constant. Every sample is drawn from the caller's generator, so that equal seeds give equal loads.
"""

from __future__ import annotations

import math
from random import Random
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class StrictModel(BaseModel):
    """The base of all sections of scenarios and mock plans."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Distribution(StrictModel):
    def sample(self, rng: Random) -> float:
        raise NotImplementedError

    def sample_count(self, rng: Random, minimum: int = 1) -> int:
        """A sample rounded to a whole number of at least `minimum`."""
        return max(minimum, round(self.sample(rng)))


class Constant(_Distribution):
    kind: Literal["constant"] = "constant"
    value: float = Field(ge=0)

    def sample(self, rng: Random) -> float:
        return self.value


class Uniform(_Distribution):
    """Evenly distributed from `min` to `max` (also called `low` and `high`)."""

    kind: Literal["uniform"]
    min: float = Field(ge=0, validation_alias=AliasChoices("min", "low"))
    max: float = Field(ge=0, validation_alias=AliasChoices("max", "high"))

    @model_validator(mode="after")
    def _check_order(self) -> Uniform:
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g}); swap them")
        return self

    def sample(self, rng: Random) -> float:
        return rng.uniform(self.min, self.max)


class _Clamped(_Distribution):
    min: float = Field(0, ge=0)
    max: float = Field(math.inf, gt=0)

    def _clamp(self, value: float) -> float:
        return min(self.max, max(self.min, value))


class Normal(_Clamped):
    """With the standard deviation `sd`; values outside `min` to `max` are set to the nearer bound."""

    kind: Literal["normal"]
    mean: float = Field(ge=0)
    sd: float = Field(ge=0)

    def sample(self, rng: Random) -> float:
        return self._clamp(rng.gauss(self.mean, self.sd))


class Lognormal(_Clamped):
    """Half of the values are below `median`, with a long tail, as lengths of real prompts and answers have. `mean` and
    `cv` (standard deviation over mean) may be given instead."""

    kind: Literal["lognormal"]
    median: float = Field(gt=0)
    sigma: float = Field(ge=0, le=5)

    @model_validator(mode="before")
    @classmethod
    def _from_mean(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "mean" not in given:
            return given
        others = dict(given)
        mean, cv = others.pop("mean"), others.pop("cv", None)
        if not (isinstance(mean, (int, float)) and isinstance(cv, (int, float)) and mean > 0 and cv > 0):
            raise ValueError("mean and cv must be numbers above 0")
        variance = math.log1p(cv**2)
        return {"median": mean * math.exp(-variance / 2), "sigma": math.sqrt(variance), **others}

    def sample(self, rng: Random) -> float:
        return self._clamp(self.median * math.exp(rng.gauss(0.0, self.sigma)))


class Exponential(_Distribution):
    """Waits between independent events."""

    kind: Literal["exponential"]
    mean: float = Field(gt=0)

    def sample(self, rng: Random) -> float:
        return rng.expovariate(1 / self.mean)


class Choice(_Distribution):
    """One of `values`, equally likely unless there are `weights`."""

    kind: Literal["choice"]
    values: tuple[float, ...] = Field(min_length=1)
    weights: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _check_weights(self) -> Choice:
        if self.weights is not None and (len(self.weights) != len(self.values) or sum(self.weights) <= 0):
            raise ValueError(f"weights need one number for each of the {len(self.values)} values, and a sum above 0")
        if any(value < 0 for value in self.values) or any(weight < 0 for weight in self.weights or ()):
            raise ValueError("values and weights are 0 or more")
        return self

    def sample(self, rng: Random) -> float:
        return rng.choices(self.values, self.weights)[0]


def _constant_from_number(given: object) -> object:
    plain = isinstance(given, (int, float)) and not isinstance(given, bool)
    return {"kind": "constant", "value": given} if plain else given


Distribution = Annotated[
    Annotated[Constant | Uniform | Normal | Lognormal | Exponential | Choice, Field(discriminator="kind")],
    BeforeValidator(_constant_from_number),
]
