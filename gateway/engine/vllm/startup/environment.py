"""The variables and the logging configuration with which vLLM runs, in this process and in the ones it starts."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gateway.engine.vllm import engine_process
from gateway.engine.vllm.startup.arguments import command_line
from gateway.engine.vllm.startup.plan import EnginePlan

# vLLM's loggers on which it writes the output of these flags.
_LOGGERS_BY_FLAG = {
    "enable_log_requests": ("vllm.entrypoints.serve.utils.request_logger", "vllm.v1.engine.async_llm"),
    "aggregate_engine_logging": ("vllm.v1.metrics.loggers",),
}


def prepare_process(plan: EnginePlan) -> Path:
    """Prepare this process for vLLM. Returns the file to which the engine process will log its errors."""
    # Kept as long as the process lives: processes that vLLM starts later read their logging configuration here, too.
    folder = Path(tempfile.mkdtemp(prefix="sluice-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    error_log = folder / "errors.log"
    set_environment(plan, error_log)
    return error_log


def set_environment(plan: EnginePlan, error_log: Path) -> None:
    """Set the variables that vLLM reads, but for those that the user has set."""
    level = "DEBUG" if plan.log_level == "debug" else os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper()
    folder = error_log.parent
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        # Clients' media are fetched by `media_connector`.
        "VLLM_MEDIA_CONNECTOR": "sluice",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": level,
        "VLLM_LOGGING_CONFIG_PATH": str(folder / "logging.json"),
        # Its sockets: it leaves some behind with every engine, and this folder goes when the process does.
        "VLLM_RPC_BASE_PATH": str(folder),
        # A grammar's regular expression has been compiled within its limits before the engine gets it; vLLM's limit
        # would leave a thread behind that goes on.
        "VLLM_REGEX_COMPILATION_TIMEOUT_S": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Its log lines are the only ones that do not pass through logging.
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # The last one: a killed engine leaves semaphores behind, which are then cleaned up.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning,"
        "ignore::UserWarning:multiprocessing.resource_tracker",
    }
    if plan.synthetic is not None:
        # Without a model any length is possible.
        defaults["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    if plan.is_demo:
        defaults |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            # Some samplers compile a helper on first use: 20 s on two cores, and it needs a C++ compiler.
            "TORCH_COMPILE_DISABLE": "1",
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # The supervisor decides whether the server outlives its engine.
    os.environ["VLLM_KEEP_ALIVE_ON_ENGINE_DEATH"] = "1"
    os.environ[engine_process.VARIABLE] = engine_process.WITH_STACK_TRACES if plan.log_level == "debug" else "1"
    (folder / "logging.json").write_text(json.dumps(_logging_config(plan, level, error_log)), encoding="utf-8")


def _logging_config(plan: EnginePlan, level: str, error_log: Path) -> dict[str, Any]:
    quiet = "CRITICAL" if level == "ERROR" else level
    console_only = {"handlers": ["console"], "level": level, "propagate": False}
    return {
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
            "error_log": {"class": "logging.FileHandler", "filename": str(error_log), "level": "ERROR", "delay": True},
        },
        "loggers": {
            # In this order: the filter of the console takes the text out of some records.
            "vllm": {"handlers": ["error_log", "console"], "level": level, "propagate": False},
            # Refused requests; each has its answer and its own log line already.
            "vllm.entrypoints": {"level": quiet},
            "vllm.renderers": {"level": quiet},
            # Logs at every start that a CPU has no Triton.
            "torch._library.triton": {"level": "ERROR"},
            # Errors that models or clients cause are no reason why an engine could not start: the error log would grow
            # by a stack with every answer that a parser cannot read.
            **{f"vllm.{name}": console_only for name in ("parser", "reasoning", "tool_parsers", "multimodal", "lora")},
            **{name: {"level": "INFO"} for name in _requested_loggers(plan) if level not in ("INFO", "DEBUG")},
        },
    }


def _requested_loggers(plan: EnginePlan) -> list[str]:
    """vLLM's loggers whose lines a flag requires, and that write them on a level that is not shown."""
    given = {*command_line.resolve_flags(plan.flags).names, *(name.replace("-", "_") for name in plan.engine)}
    return [logger for flag, loggers in _LOGGERS_BY_FLAG.items() if flag in given for logger in loggers]
