"""From a plan to vLLM's parsed arguments.

`engine:` settings and the flags after `--` become the command line of `vllm serve`, so that every argument keeps vLLM's
name, meaning and check.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.engine.vllm.startup.arguments import command_line, vllm_parser
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.engine.vllm.synthetic.timing import SETTINGS_KEY
from gateway.errors import SettingsError

# vLLM imports the executor without a model by this path, in the engine process.
_SYNTHETIC = "gateway.engine.vllm.synthetic.executor.SyntheticExecutor"
# Variables of vLLM's that make it keep state in one process which the next request, in another process, would need.
_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "an adapter loaded through one worker would be unknown to the others",
    "VLLM_ENABLE_RESPONSES_API_STORE": "a stored response is known to one worker only",
}


def early_problems(plan: EnginePlan) -> list[str]:
    """A sentence for each thing that is wrong already before vLLM is imported."""
    given = {**plan.engine, **command_line.resolve_flags(plan.flags).shown}
    return [*vllm_parser.engine_key_problems(plan.engine, plan.source), *vllm_parser.missing_file_problems(given)]


def parse_args(plan: EnginePlan) -> Any:
    """vLLM's own namespace for the plan. Raises SettingsError that names each wrong key and the nearest right one."""
    args, problems = parse_collecting(plan)
    if problems:
        raise SettingsError(*problems)
    return args


def parse_collecting(plan: EnginePlan) -> tuple[Any, list[str]]:
    """The same, with the problems at which vLLM's parser does not stop. Raises SettingsError for those at which it
    does."""
    if wrong := vllm_parser.engine_key_problems(plan.engine, plan.source):
        raise SettingsError(*wrong)
    given = command_line.resolve_flags(plan.flags).names
    # vLLM warns of arguments that are given twice.
    own = {name: value for name, value in _arguments_by_name(plan).items() if name.partition(".")[0] not in given}
    args, problems = vllm_parser.parse_argv([*vllm_parser.to_argv(own), *plan.flags])
    # Errors of clients are logged without stacks.
    args.log_error_stack = plan.log_level == "debug"
    if plan.synthetic is not None:
        _use_synthetic_executor(args, plan.synthetic)
    elif (
        plan.is_demo
        and args.tensor_parallel_size * args.pipeline_parallel_size > 1
        and args.distributed_executor_backend == "uni"
    ):
        # The one process of the demo model's default cannot be several ranks.
        args.distributed_executor_backend = None
    if plan.workers > 1:
        problems += worker_problems(args)
    return args, problems


def vllm_command_line(plan: EnginePlan) -> list[str]:
    """The command line of `vllm serve` that starts the same engine, without `plan.flags`."""
    return vllm_parser.to_argv(_arguments_by_name(plan))


def _use_synthetic_executor(args: Any, settings: Mapping[str, Any]) -> None:
    if args.distributed_executor_backend not in (None, _SYNTHETIC):
        raise SettingsError(
            "synthetic.enabled puts an executor of its own in the place of "
            f"distributed_executor_backend={args.distributed_executor_backend}; set only one of them."
        )
    args.distributed_executor_backend = _SYNTHETIC
    # vLLM's own place for settings of extensions; it reaches the engine process with the rest of the configuration.
    args.additional_config = {**(args.additional_config or {}), SETTINGS_KEY: dict(settings)}


def _arguments_by_name(plan: EnginePlan) -> dict[str, Any]:
    return {**_default_arguments(plan), **{name.replace("-", "_"): value for name, value in plan.engine.items()}}


def _default_arguments(plan: EnginePlan) -> dict[str, Any]:
    """Arguments for CPUs and for an engine without a model that no user should have to set."""
    from vllm.platforms import current_platform

    if plan.synthetic is not None:
        # Nothing is computed, so no number of sequences is too large; the batch is the one vLLM uses on large GPUs.
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


def worker_problems(args: Any) -> list[str]:
    """A sentence for each argument, parsed by vLLM, and variable that does not go with more than one worker."""
    size = args.data_parallel_size
    local = args.data_parallel_size_local
    remote = {
        "data_parallel_backend=ray": args.data_parallel_backend == "ray",
        "data_parallel_size_local": local is not None and local != size,
        "data_parallel_rank": args.data_parallel_rank is not None,
        "data_parallel_external_lb": args.data_parallel_external_lb,
        "data_parallel_hybrid_lb": args.data_parallel_hybrid_lb,
        "enable_elastic_ep": getattr(args, "enable_elastic_ep", False),
    }
    problems = [
        f"engine.{name} does not go with server.workers: the workers watch engine processes of this machine only. "
        "Set server.workers to 1."
        for name, is_set in remote.items()
        if is_set
    ]
    if getattr(args, "mm_tensor_ipc", None) == "torch_shm":
        problems.append(
            "engine.mm_tensor_ipc=torch_shm does not go with server.workers: its queue ends with the first engine "
            "process. Set server.workers to 1, or leave it out."
        )
    if getattr(args, "enable_server_load_tracking", False):
        problems.append(
            "engine.enable_server_load_tracking does not go with server.workers: /load would show one worker's share. "
            "Leave it out and read sluice_streams_active at /metrics, or set server.workers to 1."
        )
    for name, reason in _ENVIRONMENT.items():
        if os.environ.get(name, "0").lower() in ("1", "true"):
            problems.append(f"{name} does not go with server.workers: {reason}. Unset it or set server.workers to 1.")
    return problems
