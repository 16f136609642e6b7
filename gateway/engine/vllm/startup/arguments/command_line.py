"""vLLM's flags among the words of a command, spelled as vLLM's own parser takes them.

Flags are written out: an abbreviation that passes the check of its spelling would still be obeyed. Underscores stand
for dashes up to the first dot (`--limit_mm_per_prompt.image 1`), `-O3` for `--optimization-level 3`. No value of a
flag is ever repeated in a message: it may be a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.engine.vllm.startup.arguments import catalog, flag_rules
from gateway.engine.vllm.startup.arguments.catalog import Catalog, Flag
from gateway.engine.vllm.startup.arguments.flag_rules import RuleKind
from gateway.hints import did_you_mean, nearest

_NUMBER = re.compile(r"-\d+(\.\d*)?|-\.\d+")
# vLLM calls the attached form of this flag by that name, and has no `-O` of its own in some versions.
_LEVEL = "optimization_level"
# Flags of older versions, which are still in many scripts, and what took their place. The nearest by spelling would
# be another thing.
_REMOVED_FLAGS = {
    "--cuda-graph-sizes": "--cudagraph-capture-sizes",
    "--disable-log-requests": "nothing instead, since requests are only logged with --enable-log-requests",
    "--enable-reasoning": "--reasoning-parser alone",
    "--guided-decoding-backend": "--structured-outputs-config.backend",
    "--max-seq-len-to-capture": "--max-cudagraph-capture-size",
    "--num-speculative-tokens": "--speculative-config.num_speculative_tokens",
    "--override-pooler-config": "--pooler-config",
    "--rope-scaling": "--hf-overrides, with the field of the model's config.json",
    "--rope-theta": "--hf-overrides, with the field of the model's config.json",
    "--speculative-model": "--speculative-config.model",
    "--swap-space": "nothing instead, since preempted requests are computed anew",
    "--task": "--runner, and --convert where it is needed",
    "--worker-use-ray": "--distributed-executor-backend ray",
}


@dataclass(frozen=True, slots=True)
class GivenFlag:
    """One flag as it was given. `flag` is None if its list does not have it and vLLM's parser has to decide; `path` is
    what follows the first dot of `--structured-outputs-config.backend`."""

    flag: Flag | None
    option: str
    words: tuple[str, ...]
    values: tuple[str, ...] = ()
    path: str = ""
    negative: bool = False


@dataclass(slots=True)
class SplitCommand:
    """The words of a command, divided: `own` are not vLLM's flags, `problems` are sentences about wrong ones."""

    own_words: list[str] = field(default_factory=list)
    given: list[GivenFlag] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ResolvedFlags:
    """What the flags ask for: settings of ours by section and key, and `flags` for vLLM's own parser."""

    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """The option that set each dotted setting."""
    model: str | None = None
    flags: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    """vLLM's names of the flags in `flags`."""
    shown: dict[str, Any] = field(default_factory=dict)
    """The same by name and value, for people."""
    problems: list[str] = field(default_factory=list)
    missing_model_problem: str = ""
    """A problem if no model is named: it may be the last value of a flag that takes several."""


def split_words(
    words: Sequence[str], own: Mapping[str, bool], *, place: str = "", known: Catalog | None = None
) -> SplitCommand:
    """Divide `words`. `own` are the command's own options, and whether they take a value; `place` tells in messages
    where the words stand."""
    known = catalog.installed_catalog() if known is None else known
    found = SplitCommand()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not _is_option(word):
            found.own_words.append(word)
        elif key in own:
            found.own_words.append(word)
            if own[key] and not equals and rest:
                found.own_words.append(rest.pop(0))
        else:
            _parse_option(word, key, value if equals else None, rest, found, (own, place, known))
    return found


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and _NUMBER.fullmatch(word) is None


def _parse_option(
    word: str,
    key: str,
    value: str | None,
    rest: list[str],
    found: SplitCommand,
    about: tuple[Mapping[str, bool], str, Catalog],
) -> None:
    own, place, known = about
    name, path = _normalize(key)
    flag = known.options.get(name)
    if flag is None and name.startswith("-O"):
        flag, value = known.flags.get(_LEVEL), name[2:] or value
        name = "-O"
    if flag is None and not name.startswith("--") and len(name) > 2 and (short := known.options.get(name[:2])):
        # `-n2`, as for every flag of one letter.
        flag, value, name = short, key[2:] + ("" if value is None else f"={value}"), name[:2]
    if flag is None and name in ("--help", "-h"):
        found.problems.append(
            "docs/vllm-flags.md tells what becomes of each flag, `sluice engine --help=all` what it does."
        )
        return
    if flag is None:
        if known.complete:
            found.problems.append(unknown_flag_problem(key, place, [*own, *known.options]))
            _pop_values(rest)
            return
        found.given.append(GivenFlag(None, key, (word, *_pop_values(rest))))
        return
    values: list[str] = [] if value is None else [value]
    if flag.values == "none" and not path:
        if value is not None:
            found.problems.append(f"{key}{place} takes no value.")
    elif value is None:
        many = flag.values == "many" and not path
        values = _pop_values(rest) if many else _pop_values(rest, 1)
        if not values and (path or flag.values != "optional"):
            found.problems.append(f"{key}{place} needs a value.")
            return
    words = (word, *(values if value is None else ()))
    found.given.append(GivenFlag(flag, key, words, tuple(values), path, name in flag.negative))


def _normalize(key: str) -> tuple[str, str]:
    """The option in its usual spelling, and what follows its first dot."""
    name, _, path = key.partition(".")
    return (name.replace("_", "-") if name.startswith("--") else name), path


def _pop_values(rest: list[str], limit: int | None = None) -> list[str]:
    taken: list[str] = []
    while rest and not _is_option(rest[0]) and (limit is None or len(taken) < limit):
        taken.append(rest.pop(0))
    return taken


def unknown_flag_problem(option: str, place: str, options: Collection[str]) -> str:
    """The sentence about an option that does not exist, with the nearest that does."""
    if (instead := _REMOVED_FLAGS.get(_normalize(option.partition("=")[0])[0])) is not None:
        return f"{option.partition('=')[0]}{place} was a flag of older versions of vLLM. Use {instead}."
    return (
        f"{option.partition('=')[0]}{place} is not a flag of `vllm serve`{' or `sluice serve`' if not place else ''}."
        + did_you_mean(nearest_option(option, options))
    )


def nearest_option(option: str, options: Collection[str]) -> str:
    """The option that was meant; "" if none is near."""
    name, _ = _normalize(option.partition("=")[0])
    longer = sorted((one for one in options if len(name) > 3 and one.startswith(name)), key=len)
    return longer[0] if longer else nearest(name, options, cutoff=0.7)


def apply_flags(given: Iterable[GivenFlag], found: ResolvedFlags | None = None, *, place: str = "") -> ResolvedFlags:
    """What those flags ask for, on top of what was `found` already."""
    found = found or ResolvedFlags()
    for one in given:
        _apply_flag(one, place, found)
    return found


def resolve_flags(flags: Sequence[str]) -> ResolvedFlags:
    """What flags that have been resolved ask of vLLM."""
    return apply_flags(split_words(flags, {}).given)


def _apply_flag(one: GivenFlag, place: str, found: ResolvedFlags) -> None:
    if one.flag is None:
        found.flags.extend(one.words)
        return
    disposition = flag_rules.find_rule(one.flag)
    name = one.flag.name
    if name == "model":
        found.model = one.values[-1]
    elif disposition is None or disposition.kind is RuleKind.PASSED:
        if name == "served_model_name" and len(one.values) > 1 and "/" in one.values[-1]:
            taken = f"{one.values[-1]} is taken for a value of {one.option}."
            found.missing_model_problem = f"{taken} Name the model before it, or with --model."
        found.flags.extend(one.words)
        found.names.add(name)
        _show(one, found.shown)
    elif disposition.kind is RuleKind.REFUSED or (disposition.kind is RuleKind.ALWAYS and one.negative):
        note = (
            disposition.note
            if disposition.kind is RuleKind.REFUSED
            else f"{disposition.note} It cannot be switched off."
        )
        found.problems.append(f"{one.option}{place} is not a flag of Sluice's. {note}")
    elif disposition.kind is RuleKind.SETTING:
        assert disposition.convert is not None
        *sections, key = disposition.setting.split(".")
        try:
            value = disposition.convert(one.values, one.negative)
        except ValueError as error:
            found.problems.append(f"{one.option}{place} {error}.")
            return
        at: dict[str, Any] = found.settings
        for section in sections:
            at = at.setdefault(section, {})
        at[key] = [*at.get(key, []), *value] if name == "middleware" else value
        found.sources[disposition.setting] = one.option


def _show(one: GivenFlag, shown: dict[str, Any]) -> None:
    assert one.flag is not None
    value: Any = [_parse_value(text) for text in one.values] if one.flag.values == "many" else None
    if one.flag.values == "none" and not one.path:
        value = not one.negative
    elif value is None or one.path:
        value = _parse_value(one.values[-1]) if one.values else True
    at, key = shown, one.flag.name
    for part in one.path.rstrip("+").split(".") if one.path else []:
        inner = at.get(key)
        if not isinstance(inner, dict):
            inner = at[key] = {}
        at, key = inner, part
    at[key] = value


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


__all__ = [
    "GivenFlag",
    "ResolvedFlags",
    "SplitCommand",
    "apply_flags",
    "nearest_option",
    "resolve_flags",
    "split_words",
    "unknown_flag_problem",
]
