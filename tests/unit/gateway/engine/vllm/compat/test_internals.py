"""The list of vLLM's internals is complete, and has nothing that is no longer used: our source is held against it,
without vLLM."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import gateway
from gateway.engine.vllm.compat.internals import INTERNALS, Internal

_GATEWAY = Path(gateway.__file__).parent
_ROOT = _GATEWAY / "engine" / "vllm"
# Of the standard library: `os._exit`, records of `logging`, the arguments of `sys`.
_STANDARD = frozenset({"_exit", "msg", "args", "exc_info", "exc_text", "argv", "__path__"})


def name_of(file: Path) -> str:
    """`output/fast_path.py` -> `output.fast_path`."""
    return ".".join(file.relative_to(_ROOT).with_suffix("").parts)


FILES = {name_of(file): file for file in sorted(_ROOT.rglob("*.py")) if file.parent.name != "compat"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@cache
def fields_of_ours() -> frozenset[str]:
    """The attributes that classes of the gateway declare: assigning one of those changes an object of ours."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in _GATEWAY.rglob("*.py")]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return frozenset().union(*map(fields, classes))


def fields(node: ast.ClassDef) -> set[str]:
    found = {
        one.targets[0].id for one in node.body if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
    }
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and is_self(inner.value):
            found.add(inner.attr)
        elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
            found.add(inner.target.id)
    return found


def methods(node: ast.ClassDef) -> set[str]:
    return {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


class Touched(ast.NodeVisitor):
    """The private names that a file uses and does not define, and every attribute that it assigns and that is not of a
    class of ours."""

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.names: set[str] = set()
        self._strings = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self._own = set().union(*(fields(node) | methods(node) for node in classes))
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        self._ours = {one.name for node in imports if (node.module or "").startswith("gateway") for one in node.names}
        self._class: ast.ClassDef | None = None
        self.visit(tree)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").partition(".")[0] != "gateway":
            self.names.update(alias.name for alias in node.names if is_private(alias.name))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node
        self.generic_visit(node)
        self._class = outer

    def visit_Attribute(self, node: ast.Attribute) -> None:
        is_own = self._class is not None and (is_self(node.value) or self._is_super_of_ours(node.value))
        if is_private(node.attr) and not is_own and node.attr not in self._own:
            self.names.add(node.attr)
        # `args` are vLLM's command line, whose names are public.
        is_of_args = isinstance(node.value, ast.Name) and node.value.id == "args"
        if isinstance(node.ctx, ast.Store) and not is_own and not is_of_args and node.attr not in fields_of_ours():
            self.names.add(node.attr)
        self.generic_visit(node)

    def _is_super_of_ours(self, node: ast.expr) -> bool:
        is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
        bases = [] if self._class is None else [base for base in self._class.bases if isinstance(base, ast.Name)]
        return is_super and any(base.id in self._ours for base in bases)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Attribute):
            if node.value.attr == "__dict__" and isinstance(node.slice, ast.Constant):
                self.names.add(str(node.slice.value))
            elif isinstance(node.slice, ast.Slice):
                self.names.add(node.value.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func.id if isinstance(node.func, ast.Name) else ""
        if function in ("setattr", "getattr", "hasattr") and len(node.args) > 1:
            key = node.args[1]
            name = str(key.value if isinstance(key, ast.Constant) else self._strings.get(getattr(key, "id", ""), ""))
            if function == "setattr" or (is_private(name) and name not in self._own):
                self.names.add(name)
        self.names.update(word.arg for word in node.keywords if word.arg and is_private(word.arg))
        self.generic_visit(node)


def unlisted(source: str, module: str) -> set[str]:
    listed = {name for entry in INTERNALS if module in entry.used_by for name in entry.names}
    return Touched(source).names - listed - _STANDARD


@pytest.mark.parametrize("module", FILES)
def test_everything_private_or_replaced_is_on_the_list(module: str) -> None:
    assert not unlisted(FILES[module].read_text(encoding="utf-8"), module), "add it to compat/internals.py"


@pytest.mark.parametrize(
    "source",
    [
        "import vllm\nvllm.engine._secret()",
        "from vllm.x import _secret",
        "def install(llm):\n    llm.generate_tokens = 1",
        "def install(llm):\n    setattr(llm, 'generate_tokens', 1)",
        "def read(llm):\n    return getattr(llm, '_secret', None)",
        "def fill(module):\n    module.__dict__['generate_tokens'] = 1",
        "def install(app):\n    app.handlers[:] = []",
        "call(_secret=False)",
        "def patched(self):\n    return self._secret",
    ],
)
def test_a_new_dependency_is_found(source: str) -> None:
    assert unlisted(source, "a.new.module")


@pytest.mark.parametrize("entry", INTERNALS, ids=lambda entry: f"{entry.where}-{entry.names[0]}")
def test_everything_on_the_list_is_used(entry: Internal) -> None:
    texts = {module: FILES[module].read_text(encoding="utf-8") for module in entry.used_by}
    if entry.where.startswith("vllm.entrypoints.serve.sagemaker"):
        # Found by its type, in a closure.
        return
    assert all(any(name in text for name in entry.names) for text in texts.values()), "a module no longer uses it"
    assert all(any(name in text for text in texts.values()) for name in entry.names), "no module uses one of the names"


def test_reasons_and_places_are_given() -> None:
    for entry in INTERNALS:
        assert entry.reason, entry
        assert set(entry.used_by) <= set(FILES), entry
        assert set(entry.parameters) <= set(entry.names), entry
