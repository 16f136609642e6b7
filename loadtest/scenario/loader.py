"""Scenarios by name or file: reads YAML, applies overrides, and turns validation errors into sentences with their
place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from loadtest.scenario.arrivals import ClosedLoop, OpenLoop, TraceReplay
from loadtest.scenario.model import Scenario
from loadtest.scenario.slo import did_you_mean

BUILTIN_FOLDER = Path(__file__).parents[1] / "scenarios"
_MASK = "********"


class ScenarioError(Exception):
    """The scenario is wrong; the message names the field, the place and the fix."""


@dataclass(frozen=True, slots=True)
class LoadedScenario:
    """A scenario and its document, overrides applied."""

    scenario: Scenario
    document: dict[str, Any]

    def masked_yaml(self) -> str:
        """The document, with API keys masked."""
        return yaml.safe_dump(_mask_keys(self.document), sort_keys=False, allow_unicode=True)


def builtin_names() -> list[str]:
    """The names of the scenarios that ship with the package."""
    return sorted(file.stem for file in BUILTIN_FOLDER.glob("*.yaml"))


def load(name_or_file: str, overrides: Mapping[str, Any] | None = None) -> LoadedScenario:
    """Read a scenario and apply `overrides`: users, rate, duration_s, warmup_s, model, seed, api_key, metrics_url.

    Raises ScenarioError."""
    file = _find(name_or_file)
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"The scenario {file} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ScenarioError(f"The scenario {file} is not valid YAML{where}.") from None
    if not isinstance(document, dict):
        raise ScenarioError(f"The scenario {file} must hold keys such as `load:`, not a {type(document).__name__}.")
    document.setdefault("name", file.stem)
    plan = document.get("load")
    if isinstance(plan, dict) and plan.get("kind") == "trace" and isinstance(plan.get("file"), str):
        plan["file"] = str((file.parent / plan["file"]).resolve())
    scenario = parse(document, str(file))
    return _apply_overrides(
        LoadedScenario(scenario, document), {k: v for k, v in (overrides or {}).items() if v is not None}
    )


def parse(document: Mapping[str, Any], source: str) -> Scenario:
    """Validate a document that was read from `source`. Raises ScenarioError."""
    try:
        return Scenario.model_validate(document)
    except ValidationError as error:
        raise ScenarioError(_error_sentence(error, source)) from None


def _find(name_or_file: str) -> Path:
    file = Path(name_or_file)
    if file.suffix in {".yaml", ".yml"} or "/" in name_or_file:
        if not file.is_file():
            raise ScenarioError(
                f"The scenario file {file} does not exist. Built-in ones, by name: {', '.join(builtin_names())}."
            )
        return file
    if name_or_file not in builtin_names():
        raise ScenarioError(
            f"There is no scenario named {name_or_file!r}.{did_you_mean(name_or_file, builtin_names())} "
            f"Built-in ones: {', '.join(builtin_names())}; or give a .yaml file."
        )
    return BUILTIN_FOLDER / f"{name_or_file}.yaml"


def _apply_overrides(loaded: LoadedScenario, overrides: Mapping[str, Any]) -> LoadedScenario:
    if not overrides:
        return loaded
    document = dict(loaded.document)
    stages = dict(document.get("stages") or {})
    stages |= {
        key: overrides[flag]
        for flag, key in (("duration_s", "measure_s"), ("warmup_s", "warmup_s"))
        if flag in overrides
    }
    if stages:
        document["stages"] = stages
    document |= {key: overrides[key] for key in ("model", "seed", "metrics_url") if key in overrides}
    if (users := overrides.get("users")) is not None:
        document["load"] = {
            **(document["load"] if loaded.scenario.is_closed_loop else {"kind": "closed"}),
            "users": users,
        }
    if (rate := overrides.get("rate")) is not None:
        if not 0 < rate < math.inf:
            raise ScenarioError(f"--rate: {rate:g} arrivals per second is impossible; give a number above 0.")
        between = parse(document, "with overrides")
        document["load"] = _scale_to_rate(between, document["load"], rate)
    if (key := overrides.get("api_key")) is not None:
        tenants = document.get("tenants") or [{"name": "default"}]
        document["tenants"] = [
            model if model.get("key") or model.get("key_env") else {**model, "key": key} for model in tenants
        ]
    return LoadedScenario(parse(document, "with overrides"), document)


def _scale_to_rate(scenario: Scenario, load: dict[str, Any], rate: float) -> dict[str, Any]:
    """The same shape, with `rate` arrivals per second on average."""
    match scenario.load:
        case ClosedLoop():
            return {"kind": "poisson", "rate": rate}
        case TraceReplay():
            raise ScenarioError("--rate: a trace has its own arrivals; set load.speed or load.share instead.")
        case OpenLoop() as shape:
            factor = rate / shape.mean_rate(scenario.stages.arrivals_s)
            scaled: dict[str, Any] = {
                key: load[key] * factor
                for key in ("rate", "start", "end", "base", "peak", "mean", "amplitude")
                if key in load
            }
            if "steps" in load:
                scaled["steps"] = [[at_s, model * factor] for at_s, model in load["steps"]]
            return {**load, **scaled}
    raise AssertionError(scenario.load)


def _error_sentence(error: ValidationError, place: str) -> str:
    problem = error.errors()[0]
    path, right = _field_path(problem["loc"])
    dotted = ".".join(path) or "the scenario"
    if problem["type"] == "extra_forbidden":
        return f"{dotted} ({place}) is not a setting.{did_you_mean(path[-1], right)}"
    if problem["type"] == "missing":
        return f"{dotted} ({place}) is missing."
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    value = (
        ""
        if isinstance(problem["input"], (dict, list)) or problem["type"] == "value_error"
        else f"{problem['input']!r}: "
    )
    return f"{dotted} ({place}): {value}{message[:1].lower()}{message[1:]}."


def _field_path(loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The path as it is in the file, and the valid keys at its end.

    pydantic puts the tags of unions into the path, which no file contains."""
    path: list[str] = []
    models: list[type[BaseModel]] = [Scenario]
    for key in loc:
        if isinstance(key, int):
            path[-1] += f"[{key}]"
            continue
        of_tag = [model for model in models if _discriminator(model) == key]
        if of_tag and not any(key in model.model_fields for model in models):
            models = of_tag
            continue
        path.append(key)
        parents = models
        models = [
            found
            for model in parents
            if key in model.model_fields
            for found in _models_in(model.model_fields[key].annotation)
        ]
        if not any(key in model.model_fields for model in parents):
            return path, [name for model in parents for name in model.model_fields]
    return path, []


def _discriminator(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind is not None else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every model that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _mask_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _MASK if name == "key" and inner else _mask_keys(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_mask_keys(inner) for inner in value]
    return value
