"""From settings to a running AsyncLLM.

`engine:` settings and the flags after `--` become the command line of `vllm serve`, so that every argument keeps
vLLM's name, meaning and check. Building the engine blocks for seconds to minutes and runs in a thread.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from gateway.clock import Clock
from gateway.engine.bounded_json import BodyLimits
from gateway.engine.shared import EngineHost
from gateway.engine.vllm import daemon_threads, engine_process
from gateway.engine.vllm.core_client import attachment, factory, remote_engines
from gateway.engine.vllm.grammars.limits import GrammarLimits
from gateway.engine.vllm.startup.arguments import command_line, vllm_parser
from gateway.engine.vllm.startup.startup_errors import explain
from gateway.engine.vllm.synthetic.timing import SETTINGS_KEY
from gateway.errors import SettingsError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# vLLM's loggers on which it writes what these flags ask for.
_LOGGERS_BY_FLAG = {
    "enable_log_requests": ("vllm.entrypoints.serve.utils.request_logger", "vllm.v1.engine.async_llm"),
    "aggregate_engine_logging": ("vllm.v1.metrics.loggers",),
}

# Where vLLM finds the executor without a model; it imports it in the engine process.
_SYNTHETIC = "gateway.engine.vllm.synthetic.executor.SyntheticExecutor"


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What to run. `engine` holds vLLM's arguments by name, `flags` more of its command line (they win).

    `small` marks the demo model: on CPUs it is started the fast way (one process, one thread, no compilation).
    `synthetic` holds the numbers of `pace.Pace` by name if there shall be no model behind the engine.
    `hang_timeout_s` and `long_step_timeout_s` are how long the engine may leave a question unanswered while it does not
    compute, and while it does. `workers` is how many processes of ours will use it. `grammars` are the limits on
    grammars by name, `media` those of `media.Limits`.
    `source` tells where a key of `engine` was set, for messages; `say` is told each stage of the start.
    """

    engine: Mapping[str, Any]
    flags: Sequence[str] = ()
    is_demo: bool = False
    synthetic: Mapping[str, Any] | None = None
    trust_client_fields: bool = False
    body_limits: BodyLimits = field(default_factory=BodyLimits)
    prepare_timeout_s: float = 60.0
    hang_timeout_s: float = 60.0
    long_step_timeout_s: float = 600.0
    workers: int = 1
    grammars: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)
    log_level: str = "info"
    log_json: bool = False
    source: Callable[[str], str] = field(default=lambda _: "command line")
    on_stage: Callable[[str], None] = field(default=lambda _: None)

    def report_starting(self) -> None:
        """Tell the stage that takes longest."""
        weights = "loading the weights" if self.synthetic is None else "leaving out the model: its tokens are invented"
        self.on_stage(f"starting the engine process and {weights}")


def parse_args(plan: EnginePlan) -> Any:
    """vLLM's own namespace for the plan. Raises SettingsError that names each wrong key and the nearest right one."""
    args, problems = parse_collecting(plan)
    if problems:
        raise SettingsError(*problems)
    return args


def parse_collecting(plan: EnginePlan) -> tuple[Any, list[str]]:
    """The same with the problems that vLLM's parser has not stumbled over. Raises SettingsError for those it has."""
    wrong = vllm_parser.engine_key_problems(plan.engine, plan.source)
    if wrong:
        raise SettingsError(*wrong)
    given = command_line.resolve_flags(plan.flags).names
    # vLLM warns of what is given twice.
    own = {name: value for name, value in _arguments_by_name(plan).items() if name.partition(".")[0] not in given}
    args, problems = vllm_parser.parse_argv([*vllm_parser.to_argv(own), *plan.flags])
    # What clients get wrong is no stack in the log.
    args.log_error_stack = plan.log_level == "debug"
    if plan.synthetic is not None:
        _use_synthetic_executor(args, plan.synthetic)
    elif plan.is_demo and args.tensor_parallel_size * args.pipeline_parallel_size > 1:
        _allow_multiple_ranks(args)
    if plan.workers > 1:
        try:
            attachment.refuse_for_workers(args)
        except SettingsError as error:
            problems += error.problems
    return args, problems


def _allow_multiple_ranks(args: Any) -> None:
    """The one process that our default starts for the demo model cannot be several ranks."""
    if args.distributed_executor_backend == "uni":
        args.distributed_executor_backend = None


def _use_synthetic_executor(args: Any, numbers: Mapping[str, Any]) -> None:
    if args.distributed_executor_backend not in (None, _SYNTHETIC):
        raise SettingsError(
            "synthetic.enabled puts an executor of its own in the place of "
            f"distributed_executor_backend={args.distributed_executor_backend}; set only one of them."
        )
    args.distributed_executor_backend = _SYNTHETIC
    # vLLM's own place for what only an extension knows; it travels to the engine process with everything else.
    args.additional_config = {**(args.additional_config or {}), SETTINGS_KEY: dict(numbers)}


def vllm_command_line(plan: EnginePlan) -> list[str]:
    """The command line of `vllm serve` that starts the same engine, without `plan.flags`."""
    return vllm_parser.to_argv(_arguments_by_name(plan))


def _arguments_by_name(plan: EnginePlan) -> dict[str, Any]:
    return {**_default_arguments(plan), **{name.replace("-", "_"): value for name, value in plan.engine.items()}}


def _default_arguments(plan: EnginePlan) -> dict[str, Any]:
    """Engine arguments that a CPU wants, or an engine without a model, and that nobody should have to know."""
    from vllm.platforms import current_platform

    if plan.synthetic is not None:
        # Nothing is computed, so no number of sequences is too large; the batch is what vLLM takes on large GPUs.
        return {"enforce_eager": True, "max_num_seqs": 2048, "max_num_batched_tokens": 8192}
    if not current_platform.is_cpu():
        return {}
    defaults: dict[str, Any] = {}
    if plan.is_demo or not _has_bf16():
        # bf16 matrix products without bf16 units are several times slower than float32.
        defaults["dtype"] = "float32"
    if plan.is_demo:
        # One process instead of two halves the imports; a model this size gains nothing from compilation, and 256 MiB
        # hold the KV cache of 256 full-length sequences of it.
        defaults |= {
            "enforce_eager": True,
            "distributed_executor_backend": "uni",
            "kv_cache_memory_bytes": 256 * 2**20,
            "use_tqdm_on_load": False,
        }
    return defaults


def _has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return True
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def _set_environment(plan: EnginePlan, words: Path) -> None:
    """vLLM reads these from the environment, in this process and in the ones it starts. What the user set stays."""
    level = "DEBUG" if plan.log_level == "debug" else os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper()
    fallback_env = {
        "VLLM_NO_USAGE_STATS": "1",
        # What clients make this machine fetch; see `media`.
        "VLLM_MEDIA_CONNECTOR": "sluice",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": level,
        "VLLM_LOGGING_CONFIG_PATH": str(words.parent / "logging.json"),
        # Its sockets: it leaves some behind with every engine, and this folder goes when the process does.
        "VLLM_RPC_BASE_PATH": str(words.parent),
        # A grammar's regular expression has been compiled within its limits before the engine sees it; vLLM's limit
        # would leave a thread behind that goes on.
        "VLLM_REGEX_COMPILATION_TIMEOUT_S": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Its log lines are the only ones that do not come through logging.
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # The last: an engine that was killed leaves semaphores behind, which are then cleaned up.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning,"
        "ignore::UserWarning:multiprocessing.resource_tracker",
    }
    if plan.synthetic is not None:
        # A model that is not there copes with any length.
        fallback_env["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    if plan.is_demo:
        fallback_env |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            # Some samplers compile a helper on first use: 20 s on two cores, and it needs a C++ compiler.
            "TORCH_COMPILE_DISABLE": "1",
        }
    for name, value in fallback_env.items():
        os.environ.setdefault(name, value)
    # Whether the server outlives its engine is for the supervisor to decide.
    os.environ["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] = "1"
    os.environ[engine_process.VARIABLE] = engine_process.WITH_STACK_TRACES if plan.log_level == "debug" else "1"
    logging_config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "console": {"()": "gateway.logs.make_formatter", "as_json": plan.log_json, "stacks": level == "DEBUG"}
        },
        "filters": {"expected": {"()": "gateway.engine.vllm.http_app.expected_errors.ExpectedErrorFilter"}},
        "handlers": {
            "console": {
                "class": "logging.StreamHandler",
                "formatter": "console",
                "filters": ["expected"] if level == "ERROR" else [],
                "stream": "ext://sys.stderr",
            },
            "words": {"class": "logging.FileHandler", "filename": str(words), "level": "ERROR", "delay": True},
        },
        "loggers": {
            # In this order: the filter of the console takes the text out of some records.
            "vllm": {"handlers": ["words", "console"], "level": level, "propagate": False},
            # Refused requests; each has its answer and its own log line already.
            "vllm.entrypoints": {"level": "CRITICAL" if level == "ERROR" else level},
            # Says at every start that a CPU has no Triton.
            "torch._library.triton": {"level": "ERROR"},
            "vllm.renderers": {"level": "CRITICAL" if level == "ERROR" else level},
            # What models say, and who makes them say it, is no reason why an engine could not start: the file of those
            # would grow by a stack with every answer that a parser cannot read.
            **{
                f"vllm.{name}": {"handlers": ["console"], "level": level, "propagate": False}
                for name in ("parser", "reasoning", "tool_parsers", "multimodal", "lora")
            },
            **{name: {"level": "INFO"} for name in _requested_loggers(plan) if level not in ("INFO", "DEBUG")},
        },
    }
    (words.parent / "logging.json").write_text(json.dumps(logging_config), encoding="utf-8")


def _requested_loggers(plan: EnginePlan) -> list[str]:
    """vLLM's loggers whose lines somebody has asked for by a flag, and that speak on a level that is not shown."""
    asked = {*command_line.resolve_flags(plan.flags).names, *(name.replace("-", "_") for name in plan.engine)}
    return [logger_name for flag, names in _LOGGERS_BY_FLAG.items() if flag in asked for logger_name in names]


def find_early_problems(plan: EnginePlan) -> list[str]:
    """A sentence for each thing that is wrong already before vLLM is imported."""
    asked = {**plan.engine, **command_line.resolve_flags(plan.flags).shown}
    return [*vllm_parser.engine_key_problems(plan.engine, plan.source), *vllm_parser.missing_file_problems(asked)]


def prepare_process(plan: EnginePlan) -> Path:
    """Prepare this process for vLLM; where the engine process will leave its last words."""
    # Lives as long as the process: whatever vLLM spawns later reads its logging configuration from here, too.
    folder = Path(tempfile.mkdtemp(prefix="sluice-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    words = folder / "last-words.log"
    _set_environment(plan, words)
    return words


async def start(plan: EnginePlan, clock: Clock, engine_host: EngineHost | None = None) -> Any:
    """Start the engine of `plan`, or connect to the one of `engine_host`, and vLLM's app on it; a `VllmEngine`.

    Raises SettingsError, in one sentence, if it cannot start.
    """
    if wrong := find_early_problems(plan):
        raise SettingsError(*wrong)
    words = prepare_process(plan)
    joining = None if engine_host is None else attachment.EngineAttachment(engine_host)
    engine = None
    try:
        llm, args = await run_in_daemon_thread(lambda: _build(plan, joining))
        # Imported now, not above: it needs vLLM, which `_build` has imported off the event loop.
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
            make_core=lambda: factory.make_core_client(args, llm, joining, run_in_daemon_thread),
            hang_timeouts=HangTimeouts(plan.hang_timeout_s, plan.long_step_timeout_s),
            trust_client_fields=plan.trust_client_fields,
            limits=plan.body_limits,
            prepare_timeout_s=plan.prepare_timeout_s,
            grammar_limits=GrammarLimits(**plan.grammars),
        )
        await engine.open(args)
    except SettingsError:
        raise
    except Exception as error:
        logger.debug("the engine could not start", exc_info=True)
        if engine is not None:
            await engine.stop()
        raise SettingsError(explain(error, words, str(plan.engine.get("model", ""))), exit_code=1) from error
    return engine


async def run_in_daemon_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that does not keep the process alive: who presses Ctrl-C during a start that takes
    minutes must not have to wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_it(value)

    def run() -> None:
        # The engine's processes inherit this: Ctrl-C goes to every process of the terminal's group, and an engine that
        # heeds it cuts the streams that the gateway still wants to finish. multiprocessing's resource tracker lifts the
        # block in the thread that starts it, so it is started before.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            outcome: tuple[Callable[[Any], None], Any] = done.set_result, work()
        except BaseException as error:
            outcome = done.set_exception, error
        # The loop is closed where the process is already on its way out.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="sluice-engine-start", daemon=True).start()
    return await done


def _build(plan: EnginePlan, joining: attachment.EngineAttachment | None) -> tuple[Any, Any]:
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
            """Ours is stopped by name. vLLM's finalizer runs again at interpreter exit, on modules that are gone."""

    args = parse_args(plan)
    plan.on_stage("reading the model's configuration")
    config = factory.make_config(args, None if joining is None else joining.set_process_count)
    plan.report_starting()
    with remote_engines.bounded_wait(config):
        llm = Engine.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            disable_log_stats=args.disable_log_stats,
            enable_log_requests=args.enable_log_requests,
            aggregate_engine_logging=args.aggregate_engine_logging,
            **({} if joining is None else joining.client_arguments()),
        )
    plan.on_stage("building the API")
    return llm, args


__all__ = [
    "EnginePlan",
    "find_early_problems",
    "parse_args",
    "parse_collecting",
    "prepare_process",
    "run_in_daemon_thread",
    "start",
    "vllm_command_line",
]
