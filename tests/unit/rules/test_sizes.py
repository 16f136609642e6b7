"""Sizes: lines of a file, lines of a constructor, and levels of nesting. Exceptions are listed with their reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LONGEST_FILE = 400
LONGEST_CONSTRUCTOR = 40
DEEPEST_NESTING = 3

FOLDERS = ("gateway", "loadtest", "tests", "docs", "helm")
SUFFIXES = {".py", ".md", ".yaml", ".tpl", ".html", ".css", ".js", ".mjs", ".sh", ".txt"}
LONG_FILES = {
    "gateway/demo/questions.yaml": "data: the questions from which the demo model is trained",
    "helm/sluice/README.md": "more than half of it is the table of values, which is generated",
    "helm/sluice/values.yaml": "Helm reads the defaults of a chart from one file",
    "tests/charts/golden/": "generated: renders of the chart",
    "tests/charts/refused.yaml": "a table: a case for each sentence with which the chart refuses values",
    "tests/charts/rules/health.test.yaml": "a table: the tests of health.yaml, which promtool reads from one file",
}
# Each has its reason as a comment in the code, too.
DEEP_FUNCTIONS = {
    ("gateway/client/transport.py", "_AsyncStream.__aiter__"): "async generators have no `yield from`",
    ("gateway/engine/bounded_json.py", "_checked"): "a call for each container would nearly double the time",
    ("gateway/engine/vllm/http_app/proxy.py", "EngineProxy._run"): "a generator more would cost time for each output",
    ("gateway/multiprocess/worker/peer_client.py", "PeerRequest.pieces"): "async generators have no `yield from`",
    ("gateway/streams/writer.py", "StreamWriter.put_text"): "a call more would cost time for each token",
    ("gateway/transports/http/stream_endpoints.py", "StreamResponder.respond"): "the order of the scopes is the point",
}

FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()
)
SOURCES = [
    path for path in FILES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in {"gateway", "loadtest"}
]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_too_long(path: Path) -> bool:
    return len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE


def long_file_entry(path: Path) -> str | None:
    """The entry of a file or of its folder."""
    name = label(path)
    return next((key for key in LONG_FILES if name == key or (key.endswith("/") and name.startswith(key))), None)


@cache
def functions(path: Path) -> list[tuple[str, Function]]:
    """All functions of a module by their qualified names."""
    return list(_functions(ast.parse(path.read_text(encoding="utf-8")), ""))


def _functions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Function | ast.ClassDef):
            if isinstance(node, Function):
                yield prefix + node.name, node
            yield from _functions(node, f"{prefix}{node.name}.")
        else:
            yield from _functions(node, prefix)


def nesting(statements: list[ast.stmt]) -> int:
    """The most levels of blocks inside each other. `elif` is on the level of its `if`; an inner function is apart."""
    return max(map(_nesting_of, statements), default=0)


def _nesting_of(statement: ast.stmt) -> int:
    if isinstance(statement, Function | ast.ClassDef):
        return 0
    inner = [
        statements
        for node in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ()))
        for name in ("body", "orelse", "finalbody")
        if (statements := getattr(node, name, []))
    ]
    return max((nesting(each) + (not _is_elif(statement, each)) for each in inner), default=0)


def _is_elif(statement: ast.stmt, statements: list[ast.stmt]) -> bool:
    (first, *others) = statements
    return (
        isinstance(statement, ast.If)
        and statements is statement.orelse
        and isinstance(first, ast.If)
        and not others
        and first.col_offset == statement.col_offset
    )


@pytest.mark.parametrize("file", FILES, ids=label)
def test_files_stay_small(file: Path) -> None:
    assert not is_too_long(file) or long_file_entry(file) is not None


@pytest.mark.parametrize("file", SOURCES, ids=label)
def test_constructors_stay_small(file: Path) -> None:
    """Lines from the first statement to the last; a docstring is one."""
    long = {
        name: lines
        for name, function in functions(file)
        if function.name == "__init__"
        and (lines := (function.end_lineno or 0) - function.body[0].lineno + 1) > LONGEST_CONSTRUCTOR
    }

    assert not long


@pytest.mark.parametrize("file", SOURCES, ids=label)
def test_functions_stay_flat(file: Path) -> None:
    deep = {(label(file), name) for name, function in functions(file) if nesting(function.body) > DEEPEST_NESTING}

    assert deep <= DEEP_FUNCTIONS.keys()


def test_every_exception_is_still_needed() -> None:
    """An exception that is not needed hides the next one."""
    deep = {
        (label(file), name)
        for file in SOURCES
        for name, function in functions(file)
        if nesting(function.body) > DEEPEST_NESTING
    }

    assert {long_file_entry(file) for file in FILES if is_too_long(file)} == LONG_FILES.keys()
    assert deep == DEEP_FUNCTIONS.keys()


@pytest.mark.parametrize(
    ("code", "levels"),
    [
        ("a()", 0),
        ("if a:\n b()\nelif c:\n d()\nelif e:\n f()\nelse:\n g()", 1),
        ("if a:\n b()\nelse:\n if c:\n  d()\n else:\n  e()", 2),
        ("for a in b:\n c()\nelse:\n while d:\n  e()", 2),
        ("try:\n a()\nexcept B:\n with c:\n  d()\nfinally:\n e()", 2),
        ("try:\n a()\nfinally:\n if b:\n  if c:\n   d()", 3),
        ("match a:\n case 1:\n  if b:\n   c()", 2),
        ("async def f():\n async for a in b:\n  async with c:\n   if d:\n    e()", 0),
        ("if a:\n def f():\n  if b:\n   if c:\n    d()", 1),
    ],
)
def test_levels_are_counted(code: str, levels: int) -> None:
    assert nesting(ast.parse(code).body) == levels
