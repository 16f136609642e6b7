"""The list of vLLM's internals against the installed vLLM, by its source: seconds, and nothing of it is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
from gateway.engine.vllm.compat import check
from gateway.engine.vllm.compat.internals import INTERNALS

_ROOT = Path(gateway.__file__).parent / "engine" / "vllm"
# Every class has these.
_COMMON = frozenset({"__init__", "__str__"})


def test_the_installed_vllm_has_everything_on_the_list() -> None:
    assert check.problems() == []


def subclasses() -> Iterator[tuple[str, str, str, frozenset[str]]]:
    """Our classes with a base of vLLM's: our module, the base's module, the base, and what our class defines."""
    for file in sorted(_ROOT.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        homes = {
            alias.asname or alias.name: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm.")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            defined = frozenset(
                one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
            )
            for base in node.bases:
                if isinstance(base, ast.Name) and homes.get(base.id):
                    module = ".".join(file.relative_to(_ROOT).with_suffix("").parts)
                    yield module, str(homes[base.id]), base.id, defined - _COMMON


@pytest.mark.parametrize(("module", "home", "base", "defined"), [*subclasses()])
def test_every_overridden_method_is_on_the_list(module: str, home: str, base: str, defined: frozenset[str]) -> None:
    overridden = defined & set(check.members_at(home, base) or {})
    listed = {name for entry in INTERNALS if module in entry.used_by for name in entry.names}

    assert not overridden - listed, f"{module} overrides these of {base}: add them to compat/internals.py"
