"""Sentences about wrong settings: the key, its source, and the key that was probably meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from gateway.hints import did_you_mean, nearest

PREFIX = "SLUICE_"


@dataclass(frozen=True, slots=True)
class CommandContext:
    """The command's part of the settings. `options`: the option or variable that sets a dotted setting; `fallback`:
    values for settings without another source; `problems`: sentences found before; `hint`: advice for an unknown key;
    `wrong_keys`: sentences about wrong keys of `engine:`."""

    options: Mapping[str, str] = field(default_factory=dict)
    fallback: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    hint: Callable[[str], str] = field(default=lambda _: "")
    wrong_keys: Callable[[Mapping[str, Any]], Sequence[str]] = field(default=lambda _: ())


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of values. `tree` is the class of all settings."""

    tree: type[BaseModel]
    flags: Mapping[str, Mapping[str, Any]]
    document: Mapping[str, Any]
    file: Path | None
    environment: Collection[str]
    context: CommandContext


def explain(problem: Any, sources: Sources) -> str:
    """The sentence for one of pydantic's errors."""
    path = [str(part) for part in problem["loc"]]
    source = _source(path, sources)
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{dotted} ({source}) is not a setting.{_suggestion(path, sources)}"
    value = "" if isinstance(problem["input"], dict) else f"{problem['input']!r}: "
    return f"{dotted} ({source}): {value}{problem['msg'][:1].lower()}{problem['msg'][1:]}."


def _suggestion(path: Sequence[str], sources: Sources) -> str:
    """A hint at the key that was probably meant: of the same section, of another one, or one of vLLM's."""
    wrong = path[-1].replace("-", "_")
    section = path[:-1]
    keys = _keys(sources.tree, *section)
    # Of a key that two sections have, the first section counts.
    dotted = {key: f"{home}.{key}" for home, key in reversed(known_keys(sources.tree))}
    if near := nearest(wrong, keys, cutoff=0.75):
        return did_you_mean(near)
    if wrong in dotted:
        return did_you_mean(dotted[wrong])
    if hint := sources.context.hint(wrong):
        return f" {hint}"
    if not section and (near := nearest(wrong, dotted, cutoff=0.75)):
        return did_you_mean(dotted[near])
    return did_you_mean(nearest(wrong, keys))


def _source(path: list[str], sources: Sources) -> str:
    if len(path) > 1 and path[1] in sources.flags.get(path[0], {}):
        known = sources.context.options
        option = known.get(".".join(path)) or known.get(".".join(path[:2])) or f"--{path[1].replace('_', '-')}"
        return f"flag {option}"
    variable = PREFIX + "__".join(path).upper()
    for name in sources.environment:
        if name.upper() == variable:
            return f"environment variable {name}"
    if _holds(sources.document, path):
        return f"in {sources.file}"
    if _holds(sources.context.fallback, path):
        return f"environment variable {sources.context.options.get('.'.join(path[:2]), '')}".rstrip()
    return f"in {sources.file}" if path[0] in sources.document else "default"


def _holds(tree: Any, path: Sequence[str]) -> bool:
    for part in path[:2]:
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def known_keys(tree: type[BaseModel]) -> list[tuple[str, str]]:
    """Every setting by section and key."""
    return [(section, key) for section in tree.model_fields if section != "engine" for key in _keys(tree, section)]


def _keys(tree: type[BaseModel], *path: str) -> list[str]:
    """The keys below that path; none if it is no section."""
    model = tree
    for name in path:
        annotation = model.model_fields[name].annotation
        inner = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        sections = [kind for kind in inner if issubclass(kind, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return [found.alias or name for name, found in model.model_fields.items()]
