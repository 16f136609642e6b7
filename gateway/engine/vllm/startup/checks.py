"""The problems at which a start would stop, as far as they can be found without starting an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.engine.vllm.compat import check
from gateway.engine.vllm.core_client import factory
from gateway.engine.vllm.startup.arguments import vllm_parser
from gateway.engine.vllm.startup.engine_arguments import early_problems, parse_collecting
from gateway.engine.vllm.startup.environment import prepare_process
from gateway.engine.vllm.startup.plan import EnginePlan
from gateway.engine.vllm.startup.startup_errors import explain
from gateway.errors import SettingsError

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_GIB = 2**30


def find_problems(plan: EnginePlan) -> list[str]:
    """A sentence for each problem. Imports vLLM and reads the model's configuration and tokenizer."""
    if unfit := check.problems():
        # Every other answer of this vLLM could be wrong, too.
        return unfit
    found = early_problems(plan)
    error_log = prepare_process(plan)
    plan.on_stage("importing vLLM")
    try:
        args, more = parse_collecting(plan)
    except SettingsError as error:
        return [*found, *error.problems]
    found += more
    if vllm_parser.missing_file_problems({"model": args.model}):
        return found
    plan.on_stage("reading the model's configuration")
    try:
        config = factory.make_config(args)
    except Exception as error:
        return [*found, explain(error, error_log, str(args.model))]
    found += [*_tokenizer_problems(config, error_log), *_weight_problems(plan, config)]
    return found or list(_memory_problems(plan, config))


def _tokenizer_problems(config: Any, error_log: Path) -> list[str]:
    from vllm.tokenizers import cached_tokenizer_from_config

    if config.model_config.skip_tokenizer_init:
        return []
    try:
        cached_tokenizer_from_config(config.model_config)
    except Exception as error:
        return [explain(error, error_log, str(config.model_config.tokenizer))]
    return []


def _weight_problems(plan: EnginePlan, config: Any) -> list[str]:
    """Whether a folder has weights. Makes no request to the hub."""
    folder = Path(str(config.model_config.model)).expanduser()
    synthetic = plan.synthetic is not None or config.load_config.load_format in ("dummy", "runai_streamer")
    if synthetic or not folder.is_dir() or any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        return []
    return [f"The model folder {folder} has no weights (no file like {' or '.join(_WEIGHTS)})."]


def _memory_problems(plan: EnginePlan, config: Any) -> Iterator[str]:
    """Whether weights and KV cache fit into the memory that is free now."""
    if plan.synthetic is not None:
        return
    from vllm.platforms import current_platform

    cache, parallel = config.cache_config, config.parallel_config
    weights = weight_bytes(Path(str(config.model_config.model)).expanduser())
    if current_platform.is_cpu():
        total, free = _machine_memory()
        # Data-parallel engines share the machine.
        weights *= parallel.data_parallel_size_local or 1
    else:
        total, free = _device_memory()
        weights //= parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    kv_cache, utilization = cache.kv_cache_memory_bytes, cache.gpu_memory_utilization
    if total and (problem := memory_problem(weights, kv_cache, utilization, total, free)):
        yield problem
        return
    available = int(total * utilization) - weights if kv_cache is None else kv_cache
    longest = config.model_config.max_model_len
    needed = _kv_bytes_per_token(config) * longest
    if available and needed > available:
        yield (
            f"There is not enough memory for the KV cache: one request of max_model_len={longest} tokens takes "
            f"{_gib(needed)} GiB of it, but there are {_gib(available)} GiB. Raise kv_cache_memory_bytes or "
            f"gpu_memory_utilization, or lower max_model_len to {longest * available // needed} or less."
        )


def _kv_bytes_per_token(config: Any) -> int:
    """Bytes that a token takes in the KV cache of one rank; 0 where it is not the same for every token and layer."""
    model, parallel = config.model_config, config.parallel_config
    if model.use_mla or model.is_hybrid or model.is_attention_free or model.get_sliding_window() is not None:
        return 0
    from vllm.utils.torch_utils import get_kv_cache_torch_dtype

    size = get_kv_cache_torch_dtype(config.cache_config.cache_dtype, model.dtype).itemsize
    heads, layers = model.get_num_kv_heads(parallel), model.get_num_layers(parallel)
    return int(2 * heads * model.get_head_size() * layers * size)


def memory_problem(weights: int, kv_cache: int | None, utilization: float, total: int, free: int) -> str | None:
    """Why a model does not fit, None if it may. In bytes: its weights, its KV cache if that is set, all memory and free
    memory; `utilization` is the part of all memory that vLLM takes if the KV cache is not set."""
    budget = int(total * utilization)
    if kv_cache is not None and weights + kv_cache > free:
        return (
            f"There is not enough memory: {_gib(weights)} GiB of weights and {_gib(kv_cache)} GiB of KV cache "
            f"(kv_cache_memory_bytes), but {_gib(free)} GiB are free. Lower kv_cache_memory_bytes, or free memory."
        )
    if kv_cache is None and budget > free:
        return (
            f"There is not enough memory: gpu_memory_utilization={utilization:g} asks for {_gib(budget)} of "
            f"{_gib(total)} GiB, but {_gib(free)} GiB are free. Lower gpu_memory_utilization, set "
            "kv_cache_memory_bytes, or end other programs."
        )
    if kv_cache is None and weights >= budget:
        return (
            f"There is not enough memory: the weights take {_gib(weights)} GiB, of {_gib(budget)} GiB that may be used."
            " Use a smaller or quantized model, or more devices (tensor_parallel_size)."
        )
    return None


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights in a folder; of the files in its index, if it has one."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        files = [folder / name for name in names]
    else:
        files = next((found for pattern in _WEIGHTS if (found := list(folder.glob(pattern)))), [])
    return sum(file.stat().st_size for file in files if file.is_file())


def _machine_memory() -> tuple[int, int]:
    """Bytes in all and free, within the limit of this process's group; vLLM reads the same."""
    from vllm.utils.cpu_resource_utils import get_memory_node_info

    info = get_memory_node_info()
    return int(info.total_memory), int(info.available_memory)


def _device_memory() -> tuple[int, int]:
    """Bytes of the first device in all and free; zeros if they are not known without a context on it."""
    try:
        from vllm.utils.import_utils import import_pynvml

        pynvml = import_pynvml()
        pynvml.nvmlInit()
        info = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
        return int(info.total), int(info.free)
    except Exception:
        return 0, 0


def _gib(number: int) -> str:
    return f"{number / _GIB:.1f}" if number > _GIB // 10 else f"{number / _GIB:.4f}"
