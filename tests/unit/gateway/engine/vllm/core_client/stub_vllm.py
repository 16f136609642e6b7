"""A vLLM that has nothing but the error of a dead engine: importing the real one takes ten seconds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

_OURS = ("gateway.engine.vllm.core_client", "gateway.engine.vllm.exceptions")
_VLLM = ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.exceptions")


class Died(Exception):
    """Stands for vLLM's EngineDeadError."""


@contextmanager
def beside_stub(monkeypatch: pytest.MonkeyPatch, module: str) -> Iterator[Any]:
    """A module of the core client, imported anew beside that vLLM."""
    for name in _VLLM:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[_VLLM[-1]].EngineDeadError = Died  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.startswith(_OURS)]:
        monkeypatch.delitem(sys.modules, name)
    yield importlib.import_module(f"{_OURS[0]}.{module}")
    for name in [name for name in sys.modules if name.startswith(_OURS)]:
        del sys.modules[name]
