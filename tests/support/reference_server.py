"""For test_equality: one real engine with our server and vLLM's unchanged app on it, a pair for each set of parsers.

Prints one JSON line with the ports, then serves until it is killed.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app

from gateway import demo
from gateway.app import Sluice
from gateway.clock import SystemClock
from gateway.engine.bounded_json import BodyLimits
from gateway.engine.vllm.core_client.watch import HangTimeouts
from gateway.engine.vllm.engine import VllmEngine
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.startup import launcher
from gateway.engine.vllm.startup.engine_arguments import parse_args
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.settings_sections import Synthetic

PARSERS: dict[str, dict[str, Any]] = {
    "none": {"tool_call_parser": None, "reasoning_parser": "", "enable_auto_tool_choice": False},
    "tools": {"tool_call_parser": "hermes", "reasoning_parser": "", "enable_auto_tool_choice": True},
    "both": {"tool_call_parser": "hermes", "reasoning_parser": "qwen3", "enable_auto_tool_choice": True},
}


def variant(args: Any, parsers: dict[str, Any]) -> Any:
    changed = copy.copy(args)
    changed.structured_outputs_config = copy.copy(args.structured_outputs_config)
    changed.structured_outputs_config.reasoning_parser = parsers["reasoning_parser"]
    changed.tool_call_parser = parsers["tool_call_parser"]
    changed.enable_auto_tool_choice = parsers["enable_auto_tool_choice"]
    return changed


async def serve(app: Any, lifespan: str) -> int:
    config = uvicorn.Config(app, port=0, lifespan=lifespan, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:
        if serving.done():
            serving.result()
        await asyncio.sleep(0.01)
    KEPT.append(serving)
    return int(server.servers[0].sockets[0].getsockname()[1])


async def no_other() -> Any:
    raise NotImplementedError("the engine never dies in these tests")


SYNTHETIC = Synthetic(step_ms=0.5).model_dump(mode="json", exclude={"enabled"})
KEPT: list[asyncio.Task[None]] = []


async def main() -> None:
    plan = EnginePlan(
        engine={"model": str(demo.MODEL_PATH), "served_model_name": demo.SERVED_NAME, "enable_prefix_caching": False},
        is_demo=True,
        # A vLLM that was built for GPUs serves where there is none, but no model.
        synthetic=SYNTHETIC if os.environ.get("REFERENCE_SYNTHETIC") else None,
    )
    clock = SystemClock()
    first = await launcher.start(plan, clock)
    llm = first.llm
    args = parse_args(plan)
    tasks = await llm.get_supported_tasks()
    ports: dict[str, dict[str, int]] = {}
    for name, parsers in PARSERS.items():
        changed = variant(args, parsers)

        async def open_ours(changed: Any = changed) -> Any:
            engine = VllmEngine(
                llm,
                llm.engine_core,
                clock,
                make_core=no_other,
                hang_timeouts=HangTimeouts(hang_timeout_s=60, long_step_timeout_s=600),
                trust_client_fields=False,
                grammar_limits=GrammarLimits(),
                limits=BodyLimits(),
                prepare_timeout_s=60,
            )
            await engine.open(changed)
            return engine

        ready = asyncio.Event()
        sluice = Sluice(
            Settings(),
            launch=open_ours,
            clock=clock,
            metrics=Metrics("test", CollectorRegistry()),
            on_ready=ready.set,
            on_failure=lambda error: print(error, flush=True),
        )
        ours = await serve(sluice.asgi, "on")
        await ready.wait()
        app = build_app(changed, tasks, llm.model_config)
        await init_app_state(llm, app.state, changed, tasks)
        ports[name] = {"ours": ours, "vllm": await serve(app, "off")}
    print(json.dumps(ports), flush=True)
    await asyncio.gather(*KEPT)


if __name__ == "__main__":
    assert Path(demo.MODEL_PATH).exists()
    asyncio.run(main())
