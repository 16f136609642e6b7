"""The text of vllm-flags.md: what `sluice serve` does with each flag and variable of vLLM's server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from docs.markdown import table
from gateway.engine.vllm.startup.arguments import catalog, flag_rules, variables
from gateway.engine.vllm.startup.arguments.catalog import Flag
from gateway.engine.vllm.startup.arguments.flag_rules import FlagRule, RuleKind

_HEAD = """\
# vLLM's flags and variables

`sluice serve MODEL` takes the flags of `vllm serve` as they are. Arguments after `--` are always vLLM's: `--config` and
`--log-level`, which both commands have, are Sluice's before it and vLLM's after it. Each flag is passed to vLLM, sets a
setting of Sluice, or is refused with a sentence; none is accepted without effect. In a settings file, arguments of vLLM
belong to the section `engine:`, under vLLM's own names. Flags must be spelled out: abbreviations are refused.

`make docs` writes this file from `gateway/engine/vllm/startup/arguments/`; tests compare it with those tables and the
installed vLLM.
"""


def text() -> str:
    """The whole file."""
    versions = catalog.listed_versions()
    flags: dict[str, Flag] = {}
    since: dict[str, list[str]] = {}
    for version in versions:
        for name, flag in catalog.load_catalog(version).flags.items():
            flags[name] = flag
            since.setdefault(name, []).append(version)
    parts = [_HEAD]
    decided = {name: flag_rules.find_rule(flag) for name, flag in flags.items()}

    def shown(name: str) -> str:
        options = flags[name].options
        usual = next((option for option in options if option.startswith("--")), options[0])
        only = "" if since[name] == versions else f" ({', '.join(since[name])})"
        return f"`{usual}`{only}"

    def decided_as(kind: RuleKind) -> list[tuple[str, FlagRule]]:
        return [(shown(name), rule) for name, rule in decided.items() if rule is not None and rule.kind is kind]

    rows = [(flag, f"`{rule.setting}`", rule.note) for flag, rule in decided_as(RuleKind.SETTING)]
    parts.append(_section("Replaced by a setting", ("flag", "setting", "remark"), rows))
    noted = [(flag, rule.note) for flag, rule in decided_as(RuleKind.ALWAYS)]
    parts.append(_section("Always in effect", ("flag", "remark"), noted))
    noted = [(flag, rule.note) for flag, rule in decided_as(RuleKind.REFUSED)]
    parts.append(_section("Refused", ("flag", "what to do instead"), noted))
    passed = [name for name, found in decided.items() if found and found.kind is RuleKind.PASSED]
    noted = [(shown(name), flag_rules.PASSED[name]) for name in passed if flag_rules.PASSED.get(name)]
    parts.append(_section("Passed to vLLM, with a remark", ("flag", "remark"), noted))
    parts.append("## Passed to vLLM\n\n" + "\n".join(_by_group(passed, flags, shown)))
    noted = [(f"`{name}`", note) for name, note in _variable_rows()]
    parts.append(_section("Variables that concern the server", ("variable", "effect"), noted))
    parts.append(
        "Every other `VLLM_*` variable reaches the engine unchanged. At the start the log names a variable that vLLM\n"
        "does not know, with the nearest known one.\n"
    )
    return "\n".join(parts)


def _by_group(names: Iterable[str], flags: dict[str, Flag], shown: Callable[[str], str]) -> Iterable[str]:
    groups: dict[str, list[str]] = {}
    for name in names:
        group = {"options": "Server", "Frontend": "API"}.get(flags[name].group, flags[name].group)
        groups.setdefault(group, []).append(shown(name))
    return (f"- {group}: {', '.join(members)}" for group, members in groups.items())


def _section(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return f"## {title}\n\n{table(head, rows)}\n"


def _variable_rows() -> Iterator[tuple[str, str]]:
    """Each variable and its effect."""
    for name, setting in variables.SETTINGS.items():
        yield name, f"sets `{setting}`, unless that is set elsewhere"
    for name, sentence in variables.REFUSED.items():
        yield name, f"refused: {sentence}"
    for name, note in variables.WITHOUT_EFFECT.items():
        yield name, f"no effect, as the log says at the start: {note}"
    for name in sorted(variables.PASSED):
        yield name, "works"
