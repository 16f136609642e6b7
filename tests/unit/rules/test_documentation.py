"""The documentation agrees with the repository: links, paths, targets, settings, metrics."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from docs.generate import generate
from gateway.metrics import Metrics

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "deploy/**/*.md", "helm/**/*.md", "loadtest/**/*.md")
    for path in ROOT.glob(pattern)
)
_LARGEST_README_BYTES = 8192
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_PATH = re.compile(r"`((?:gateway|loadtest|tests|deploy|helm|docs)/[\w./-]*)`")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def _prose(document: Path) -> str:
    return _FENCED.sub("", document.read_text(encoding="utf-8"))


def _links(document: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", _INLINE_CODE.sub("", _prose(document))):
        if not re.match(r"[a-z]+:", target):
            yield target


def _anchors(document: Path) -> set[str]:
    """The fragments that GitHub gives to the headings of a document."""
    seen: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", _prose(document), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


@each_document
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for link in _links(document):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


@each_document
def test_every_path_that_it_names_exists(document: Path) -> None:
    paths = _PATH.findall(_prose(document))
    # `engine/...` is short for a path below gateway/ in no document: paths are written from the root.
    assert not [path for path in paths if not (ROOT / path).exists()]


def _defined(path: Path) -> set[str]:
    """The classes, functions and methods of a module, by their qualified names."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
            names |= {f"{node.name}.{getattr(member, 'name', '')}" for member in node.body}
    return names


@each_document
def test_every_name_that_it_gives_with_a_module_exists(document: Path) -> None:
    r"""As in: `StreamWriter.cancel` (`gateway/streams/writer.py`)."""
    named = re.findall(r"`([A-Za-z_][\w.]*)`\s+\(`((?:gateway|loadtest)/[\w/]+\.py)`\)", _prose(document))
    assert not [(name, module) for name, module in named if name not in _defined(ROOT / module)]


@each_document
def test_every_make_target_that_it_names_exists(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))

    assert set(re.findall(r"`make ([a-z0-9-]+)", document.read_text(encoding="utf-8"))) <= targets


def test_the_readme_is_short_and_begins_with_two_commands() -> None:
    text = README.read_bytes()
    commands = re.findall(rb"^\$ (\w+ \w+)", text, re.MULTILINE)

    assert len(text) <= _LARGEST_README_BYTES
    assert commands[:2] == [b"make serve", b"make test"]


def test_every_promise_of_the_readme_names_its_test() -> None:
    section = README.read_text(encoding="utf-8").partition("## Promises")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]

    assert len(rows) >= 5
    assert all("](tests/" in row for row in rows)


def test_every_document_is_linked_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _links(README)}
    assert {path.resolve() for path in (ROOT / "docs").glob("*.md")} <= linked


def test_documents_that_the_code_names_exist() -> None:
    named = {
        name
        for folder in ("gateway", "loadtest", "helm", "deploy", "tests")
        for suffix in ("py", "yaml", "tpl", "txt")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
        for name in re.findall(r"\bdocs/[\w-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", [*generate()], ids=lambda path: str(path.name))
def test_generated_documents_are_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == generate()[path], "run `make docs`"


def test_every_metric_is_in_the_table() -> None:
    registry = CollectorRegistry()
    Metrics("", registry)
    counters = {"counter": "_total"}
    names = {family.name + counters.get(family.type, "") for family in registry.collect()}
    for path in (ROOT / "gateway").rglob("*.py"):
        names |= {
            f"sluice_{name}"
            for name in re.findall(r"metrics\.add_gauge\(\s*\"(\w+)\"", path.read_text(encoding="utf-8"))
        }
    table = re.findall(
        r"^\| `(sluice_\w+)` \|", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"), re.MULTILINE
    )

    assert sorted(table) == sorted(names)
