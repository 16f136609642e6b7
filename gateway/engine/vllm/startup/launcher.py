"""Starts an AsyncLLM with vLLM's app on it, or connects one to engine processes that belong to a parent. That takes
seconds to minutes, in a thread."""

from __future__ import annotations

from typing import Any

from gateway.clock import Clock
from gateway.engine.shared import EngineHost
from gateway.engine.vllm import daemon_threads, engine_process
from gateway.engine.vllm.compat import check
from gateway.engine.vllm.core_client import factory, remote_engines
from gateway.engine.vllm.daemon_threads import run_in_daemon_thread
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.startup.engine_arguments import early_problems, parse_args
from gateway.engine.vllm.startup.environment import prepare_process
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.engine.vllm.startup.startup_errors import StartupErrors
from gateway.errors import SettingsError


def prepare(plan: EnginePlan) -> StartupErrors:
    """Prepare this process for an engine. Raises SettingsError for what is wrong before vLLM is imported."""
    check.require_fitting_vllm()
    if problems := early_problems(plan):
        raise SettingsError(*problems)
    return StartupErrors(prepare_process(plan), str(plan.engine.get("model", "")))


async def start(plan: EnginePlan, clock: Clock, engine_host: EngineHost | None = None) -> Any:
    """Start the engine of `plan`, or connect to the one of `engine_host`, and vLLM's app on it; a `VllmEngine`.

    Raises SettingsError, in one sentence, if it cannot start.
    """
    errors = prepare(plan)
    attachment = None if engine_host is None else factory.EngineAttachment(engine_host)
    if attachment is not None:
        # The processes that a worker starts are no engine.
        engine_process.unmark_environment()
    with errors.explained():
        llm, args = await run_in_daemon_thread(lambda: _build(plan, attachment))
        # Not above: this needs vLLM, which `_build` has imported beside the event loop.
        from gateway.engine.vllm.core_client.restartable import RestartableCoreClient
        from gateway.engine.vllm.core_client.shared import SharedCoreClient
        from gateway.engine.vllm.core_client.watch import HangTimeouts
        from gateway.engine.vllm.engine import VllmEngine

        if engine_host is None:
            llm.engine_core = RestartableCoreClient(llm.engine_core, llm.output_processor, clock)
        else:
            llm.engine_core = SharedCoreClient(llm.engine_core, llm.output_processor, clock, engine_host)
        engine = VllmEngine(
            llm,
            llm.engine_core,
            clock,
            make_core=lambda: factory.make_core_client(args, llm, attachment),
            hang_timeouts=HangTimeouts(plan.hang_timeout_s, plan.long_step_timeout_s),
            trust_client_fields=plan.trust_client_fields,
            limits=plan.body_limits,
            prepare_timeout_s=plan.prepare_timeout_s,
            grammar_limits=GrammarLimits(**plan.grammars),
        )
        try:
            await engine.open(args)
        except Exception:
            await engine.stop()
            raise
    return engine


def _build(plan: EnginePlan, attachment: factory.EngineAttachment | None) -> tuple[Any, Any]:
    plan.on_stage("importing vLLM")
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.coordinator import DPCoordinatorProc

    from gateway.engine.vllm import media_connector

    engine_process.replace_coordinator(DPCoordinatorProc)
    media_connector.install_media_connector(media_connector.MediaLimits(**plan.media))
    daemon_threads.install()

    class Engine(AsyncLLM):  # type: ignore[misc,unused-ignore]
        def __del__(self) -> None:
            """Does nothing: ours is stopped explicitly, and vLLM's finalizer would run again at the interpreter's exit,
            on modules that are gone."""

    args = parse_args(plan)
    plan.on_stage("reading the model's configuration")
    config = factory.make_config(args, None if attachment is None else attachment.front_end)
    plan.report_starting()
    with remote_engines.bounded_wait(config):
        llm = Engine.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            disable_log_stats=args.disable_log_stats,
            enable_log_requests=args.enable_log_requests,
            aggregate_engine_logging=args.aggregate_engine_logging,
            **({} if attachment is None else attachment.client_arguments()),
        )
    plan.on_stage("building the API")
    return llm, args
