"""Arguments of vLLM that cannot be combined with several workers on one engine."""

from __future__ import annotations

import os
from typing import Any

# Variables of vLLM's that make it keep state in one process which the next request, in another process, would need.
_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "an adapter loaded through one worker would be unknown to the others",
    "VLLM_ENABLE_RESPONSES_API_STORE": "a stored response is known to one worker only",
}


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
