"""Service level objectives: the limits by which a run is judged.

A scenario has them flat, with the quantile in the name: `{ttft_p99_ms: 2000, itl_p99_ms: 50, error_rate_max: 0.01,
per_request: {ttft_ms: 2000, tpot_ms: 100}, goodput_min: 0.99, preset: llama-3.1-8b/server}`.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from loadtest.scenario.distributions import StrictModel

# MLPerf Inference's limits (`inference_rules.adoc` in its policies), by model and by how interactive the use is: a
# start for models of about that size. Name -> TTFT and TPOT in milliseconds at the 99th percentile.
PRESETS: dict[str, tuple[float, float]] = {
    "llama-3.1-8b/server": (2000, 100),
    "llama-3.1-8b/interactive": (500, 30),
    "llama-2-70b/server": (2000, 200),
    "llama-2-70b/interactive": (450, 40),
    "llama-3.1-405b/server": (6000, 175),
    "llama-3.1-405b/interactive": (4500, 80),
    "mixtral-8x7b/server": (2000, 200),
    "deepseek-r1/server": (2000, 80),
    "deepseek-r1/interactive": (1500, 15),
    "gpt-oss-120b/server": (3000, 80),
    "gpt-oss-120b/interactive": (2000, 20),
}

_NAME = re.compile(r"(ttft|itl|tpot|e2e)_(p50|p90|p95|p99|p999)_ms")
_PER_REQUEST = ["ttft_ms", "tpot_ms", "e2e_ms"]
Metric = Literal["ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"]


class Limit(StrictModel):
    """One quantile of one latency must not exceed `limit` milliseconds."""

    name: str
    metric: Metric
    quantile: Literal["p50", "p90", "p95", "p99", "p999"]
    limit: float = Field(gt=0)


class Slo(StrictModel):
    """Without any limit, a run passes if no request failed."""

    limits: tuple[Limit, ...] = ()
    per_request: dict[str, float] = Field(
        default_factory=dict, description="A request that ended well and is within all of these is good."
    )
    error_rate_max: float = Field(
        0.0, ge=0, le=1, description="Share of the requests that were due and not aborted by plan."
    )
    goodput_min: float | None = Field(None, ge=0, le=1, description="Share of the same requests that must be good.")
    preset: str | None = Field(None, description="Limits to start from; limits beside it take precedence.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "limits" in given:
            return given
        others = {name: value for name, value in given.items() if not _is_limit_name(name)}
        limits = {name: value for name, value in given.items() if _is_limit_name(name)}
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
                raise ValueError(f"{name} is {value!r}; give milliseconds above 0")
        if (preset := given.get("preset")) is not None:
            ttft, tpot = _preset(preset)
            limits = {"ttft_p99_ms": ttft, "tpot_p99_ms": tpot, **limits}
            others["per_request"] = {"ttft_ms": ttft, "tpot_ms": tpot, **(given.get("per_request") or {})}
        for name in others:
            if name not in cls.model_fields:
                right = [*(field for field in cls.model_fields if field != "limits"), *_all_limit_names()]
                raise ValueError(f"{name} is not a limit.{did_you_mean(str(name), right)} Limits look like ttft_p99_ms")
        _check_per_request(others.get("per_request"))
        return {**others, "limits": [_limit(name, value) for name, value in limits.items()]}


def _check_per_request(given: object) -> None:
    for name, value in given.items() if isinstance(given, dict) else ():
        if name not in _PER_REQUEST:
            raise ValueError(f"per_request.{name} is not a limit.{did_you_mean(str(name), _PER_REQUEST)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(f"per_request.{name} is {value!r}; give milliseconds above 0")


def did_you_mean(wrong: str, right: list[str]) -> str:
    """` Did you mean ...?`, or an empty text."""
    near = difflib.get_close_matches(wrong, right, n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


def _is_limit_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _limit(name: str, value: float) -> dict[str, object]:
    matched = _NAME.fullmatch(name)
    assert matched is not None
    return {"name": name, "metric": f"{matched[1]}_ms", "quantile": matched[2], "limit": value}


def _all_limit_names() -> list[str]:
    return [
        f"{metric}_{q}_ms" for metric in ("ttft", "itl", "tpot", "e2e") for q in ("p50", "p90", "p95", "p99", "p999")
    ]


def _preset(name: object) -> tuple[float, float]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(
            f"preset {name!r} does not exist.{did_you_mean(str(name), list(PRESETS))} Known: {', '.join(PRESETS)}"
        )
    return PRESETS[name]
