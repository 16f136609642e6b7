"""Imports vLLM's structured-output backends without the rest of vLLM, for the checker process.

Their files import torch, transformers and half of vLLM for code that only the engine uses: 6 s and 600 MB, where the
grammar libraries themselves take 1 s and 60 MB. Here stub modules replace every module that checking a grammar does not
use. The rules by which vLLM chooses a backend and refuses a grammar stay vLLM's own.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# vLLM's modules that are loaded; they use only each other and the names in `_StubFinder.exec_module`.
_LOADED = frozenset(
    {
        "vllm.exceptions",
        "vllm.v1.structured_output.backend_types",
        "vllm.v1.structured_output.backend_xgrammar",
        "vllm.v1.structured_output.backend_guidance",
        "vllm.v1.structured_output.backend_outlines",
        "vllm.v1.structured_output.backend_lm_format_enforcer",
        "vllm.v1.structured_output.request",
        "vllm.v1.structured_output.utils",
    }
)


class _Placeholder:
    """Replaces a class, function or constant that is imported but not used."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class _StubModule(ModuleType):
    """A module in which every name is `_Placeholder`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder


class _LazyModule(ModuleType):
    """Replaces vLLM's LazyLoader: a module that is imported on first use."""

    def __init__(self, _local: str, _globals: dict[str, Any], name: str) -> None:
        super().__init__(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


class _StubFinder(MetaPathFinder, Loader):
    """Finds a stub for every module below the three roots, except those in `_LOADED`, whose files are loaded."""

    def __init__(self, vllm_folder: str) -> None:
        self._vllm_folder = vllm_folder

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ("torch", "transformers", "vllm") or fullname in _LOADED:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _StubModule(spec.name)
        inside = spec.name.split(".")[1:] if spec.name.startswith("vllm") else None
        module.__path__ = [] if inside is None else [os.path.join(self._vllm_folder, *inside)]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Define the few names that the backends use of stub modules."""
        match module.__name__:
            case "vllm.logger":
                module.__dict__["init_logger"] = logging.getLogger
            case "vllm.utils.import_utils":
                module.__dict__["LazyLoader"] = _LazyModule
            case "vllm.utils.mistral":
                # Servers with such tokenizers use vLLM itself, see `fork_server`.
                module.__dict__["is_mistral_tokenizer"] = lambda _: False
            case "vllm.sampling_params":
                # The gateway has checked the nesting.
                module.__dict__["check_json_nesting"] = lambda *_, **__: None
            case "vllm.envs":
                # The process that runs the check is killed when its time is up.
                module.__dict__["VLLM_REGEX_COMPILATION_TIMEOUT_S"] = 0
                module.__dict__["VLLM_V1_USE_OUTLINES_CACHE"] = False


def install_stubs() -> None:
    """Make the backends importable in this process without vLLM, torch or transformers. To be called before any of
    those is imported."""
    # xgrammar's binding library uses torch only where torch is installed.
    sys.modules["torch"] = None  # type: ignore[assignment]
    importlib.import_module("tvm_ffi")
    del sys.modules["torch"]
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("vLLM is not installed")
    sys.meta_path.insert(0, _StubFinder(spec.submodule_search_locations[0]))


def import_backend(name: str) -> Any:
    """The module of one of vLLM's backends, such as `backend_xgrammar`."""
    return importlib.import_module(f"vllm.v1.structured_output.{name}")
