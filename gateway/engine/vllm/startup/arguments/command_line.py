"""Finds vLLM's flags in a command line, in all spellings of vLLM's own parser.

Abbreviations are refused: vLLM's parser would accept one that escapes the rules here. Underscores are equivalent to
dashes up to the first dot (`--limit_mm_per_prompt.image 1`), and `-O3` to `--optimization-level 3`. No message repeats
a flag's value, which may be a key.
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
# The name of the flag behind `-O3`; some versions of vLLM have no option `-O`.
_LEVEL = "optimization_level"
# Flags of older versions, which are still in many scripts, and their replacements. The nearest flag by spelling would
# have another meaning.
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
    """One flag of a command line. `flag` is None if the list lacks it and vLLM's parser has to decide. `path` follows
    the first dot, as `backend` in `--structured-outputs-config.backend`."""

    flag: Flag | None
    option: str
    words: tuple[str, ...]
    values: tuple[str, ...] = ()
    path: str = ""
    negative: bool = False


@dataclass(slots=True)
class SplitCommand:
    """A command line: `own_words` are not vLLM's flags, `problems` are sentences about wrong flags."""

    own_words: list[str] = field(default_factory=list)
    given: list[GivenFlag] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class ResolvedFlags:
    """The effect of flags: `settings` of ours by section and key, and `flags` for vLLM's own parser."""

    settings: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    """The option that set each dotted setting."""
    model: str | None = None
    flags: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    """vLLM's names of the flags in `flags`."""
    shown: dict[str, Any] = field(default_factory=dict)
    """The same flags by name and value, for display."""
    problems: list[str] = field(default_factory=list)
    missing_model_problem: str = ""
    """A sentence for the case that no model is given: a flag with several values may have taken it."""


def split_words(
    words: Sequence[str], own: Mapping[str, bool], *, place: str = "", known: Catalog | None = None
) -> SplitCommand:
    """Separate vLLM's flags from the other `words`. `own` are the command's own options, and whether they take a value;
    `place` follows the option in messages, such as " in a file"."""
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
            _parse_option(word, value if equals else None, rest, found, (own, place, known))
    return found


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-" and _NUMBER.fullmatch(word) is None


def _parse_option(
    word: str,
    value: str | None,
    rest: list[str],
    found: SplitCommand,
    context: tuple[Mapping[str, bool], str, Catalog],
) -> None:
    """Add the option `word` and its values, which it removes from `rest`, to `found`."""
    own, place, known = context
    key = word.partition("=")[0]
    name, path = _normalize(key)
    flag = known.options.get(name)
    if flag is None and name.startswith("-O"):
        flag, value = known.flags.get(_LEVEL), name[2:] or value
        name = "-O"
    if flag is None and not name.startswith("--") and len(name) > 2 and (short := known.options.get(name[:2])):
        # A value may follow a flag of one letter directly, as in `-n2`.
        flag, value, name = short, key[2:] + ("" if value is None else f"={value}"), name[:2]
    if flag is None and name in ("--help", "-h"):
        found.problems.append(
            "docs/vllm-flags.md lists whether each flag is supported, `sluice engine --help=all` describes it."
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
    """The option in its usual spelling, and the path after its first dot."""
    name, _, path = key.partition(".")
    return (name.replace("_", "-") if name.startswith("--") else name), path


def _pop_values(rest: list[str], limit: int | None = None) -> list[str]:
    taken: list[str] = []
    while rest and not _is_option(rest[0]) and (limit is None or len(taken) < limit):
        taken.append(rest.pop(0))
    return taken


def unknown_flag_problem(option: str, place: str, options: Collection[str]) -> str:
    """The sentence about an option that does not exist, with the nearest known one."""
    key = option.partition("=")[0]
    if (instead := _REMOVED_FLAGS.get(_normalize(key)[0])) is not None:
        return f"{key}{place} was a flag of older versions of vLLM. Use {instead}."
    commands = "`vllm serve`" if place else "`vllm serve` or `sluice serve`"
    return f"{key}{place} is not a flag of {commands}.{did_you_mean(nearest_option(option, options))}"


def nearest_option(option: str, options: Collection[str]) -> str:
    """The known option that begins with or resembles `option`; "" if there is none."""
    name, _ = _normalize(option.partition("=")[0])
    longer = sorted((one for one in options if len(name) > 3 and one.startswith(name)), key=len)
    return longer[0] if longer else nearest(name, options, cutoff=0.7)


def apply_flags(given: Iterable[GivenFlag], found: ResolvedFlags | None = None, *, place: str = "") -> ResolvedFlags:
    """The effect of flags, added to `found`."""
    found = found or ResolvedFlags()
    for one in given:
        _apply_flag(one, place, found)
    return found


def resolve_flags(flags: Sequence[str]) -> ResolvedFlags:
    """The effect of flags that are all for vLLM."""
    return apply_flags(split_words(flags, {}).given)


def _apply_flag(one: GivenFlag, place: str, found: ResolvedFlags) -> None:
    if one.flag is None:
        found.flags.extend(one.words)
        return
    rule = flag_rules.find_rule(one.flag)
    name = one.flag.name
    if name == "model":
        found.model = one.values[-1]
    elif rule is None or rule.kind is RuleKind.PASSED:
        if name == "served_model_name" and len(one.values) > 1 and "/" in one.values[-1]:
            found.missing_model_problem = (
                f"{one.values[-1]} is taken as a value of {one.option}. Put the model before that, or use --model."
            )
        found.flags.extend(one.words)
        found.names.add(name)
        _show(one, found.shown)
    elif rule.kind is RuleKind.REFUSED or (rule.kind is RuleKind.ALWAYS and one.negative):
        suffix = " It cannot be switched off." if rule.kind is RuleKind.ALWAYS else ""
        found.problems.append(f"{one.option}{place} is not a flag of Sluice. {rule.note}{suffix}")
    elif rule.kind is RuleKind.SETTING:
        assert rule.convert is not None
        *sections, key = rule.setting.split(".")
        try:
            value = rule.convert(one.values, one.negative)
        except ValueError as error:
            found.problems.append(f"{one.option}{place} {error}.")
            return
        at: dict[str, Any] = found.settings
        for section in sections:
            at = at.setdefault(section, {})
        at[key] = [*at.get(key, []), *value] if name == "middleware" else value
        found.sources[rule.setting] = one.option


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
