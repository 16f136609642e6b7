"""From settings to the plan of the engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from gateway import demo
from gateway.engine.bounded_json import BodyLimits
from gateway.engine.shared import EngineProcesses
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.settings import Settings, engine_source


def plan_engine(
    settings: Settings, model: str | None, flags: Sequence[str], file: Path | None, on_stage: Callable[[str], None]
) -> EnginePlan:
    """The engine to run, with `model`, else `engine.model`, else the demo model. `file` is the settings file, which
    error sentences name; `on_stage` gets a sentence for each step of the start."""
    engine = dict(settings.engine)
    if model is not None:
        engine["model"] = model
    is_demo = "model" not in engine
    if is_demo:
        engine = {
            "model": str(demo.MODEL_PATH),
            "served_model_name": demo.SERVED_NAME,
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
            **engine,
        }
    server = settings.server
    return EnginePlan(
        engine=engine,
        flags=flags,
        is_demo=is_demo,
        synthetic=settings.synthetic.model_dump(mode="json", exclude={"enabled"})
        if settings.synthetic.enabled
        else None,
        trust_client_fields=server.trust_client_fields,
        body_limits=BodyLimits(
            max_values=server.max_json_values,
            max_numbers=server.max_json_numbers,
            max_items=server.max_json_items,
            max_depth=server.max_json_depth,
            max_stop_strings=server.max_stop_strings,
        ),
        prepare_timeout_s=server.prepare_timeout_s,
        media=settings.media.model_dump(),
        hang_timeout_s=settings.supervisor.hang_timeout_s,
        long_step_timeout_s=settings.supervisor.long_step_timeout_s,
        workers=server.workers,
        grammars=_grammar_limits(settings),
        log_level=settings.log.level,
        log_json=settings.log.as_json,
        source=lambda name: engine_source(file, name),
        on_stage=on_stage,
    )


def _grammar_limits(settings: Settings) -> dict[str, Any]:
    """The grammar limits of one process: workers share the grammar processes, down to two for each worker."""
    limits = settings.grammars.model_dump()
    return {**limits, "processes": max(min(2, limits["processes"]), limits["processes"] // settings.server.workers)}


def engine_processes(plan: EnginePlan) -> Callable[[], Awaitable[EngineProcesses]]:
    """A function that starts the engine processes which several workers use; each call starts new ones."""
    # Not above: a server of one process does not need it.
    from gateway.engine.vllm.startup.engine_processes import EngineProcessLauncher

    return EngineProcessLauncher(plan).launch
