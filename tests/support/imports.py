"""The imports of a source file, from its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path


def imports_of(file: Path, is_module: Callable[[str], bool]) -> frozenset[str]:
    """Every imported module by its full name, also inside functions. `from a import b` is `a.b` if `is_module` finds
    that to be one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            module = node.module or ""
            deeper = [f"{module}.{alias.name}" for alias in node.names]
            found.update(name if is_module(name) else module for name in deeper)
    return frozenset(found)
