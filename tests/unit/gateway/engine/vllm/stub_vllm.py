"""A vLLM that has nothing but the errors of its engine: importing the real one takes ten seconds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

_ROOT = "gateway.engine.vllm"
_OURS = (f"{_ROOT}.core_client", f"{_ROOT}.output.isolation", f"{_ROOT}.exceptions")
_VLLM = ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.exceptions")


class Died(Exception):
    """Replaces vLLM's EngineDeadError."""


class Failed(Exception):
    """Replaces vLLM's EngineGenerateError."""


@contextmanager
def beside_stub(monkeypatch: pytest.MonkeyPatch, module: str) -> Iterator[Any]:
    """A module of `engine/vllm`, imported anew beside that vLLM."""
    for name in _VLLM:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[_VLLM[-1]].EngineDeadError = Died  # type: ignore[attr-defined]
    sys.modules[_VLLM[-1]].EngineGenerateError = Failed  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.startswith(_OURS)]:
        monkeypatch.delitem(sys.modules, name)
    yield importlib.import_module(f"{_ROOT}.{module}")
    for name in [name for name in sys.modules if name.startswith(_OURS)]:
        del sys.modules[name]
