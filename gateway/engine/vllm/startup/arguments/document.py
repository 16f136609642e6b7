"""The table of vLLM's flags and variables in the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gateway.engine.vllm.startup.arguments import catalog, dispositions, variables
from gateway.engine.vllm.startup.arguments.catalog import Flag
from gateway.engine.vllm.startup.arguments.dispositions import Kind

FILE = Path(__file__).parents[5] / "docs" / "vllm-flags.md"

_HEAD = """\
# vLLM's flags and variables

`sluice serve MODEL` takes the flags of `vllm serve` as they are. What stands after `--` is always meant for vLLM:
`--config` and `--log-level`, which both have, are Sluice's before it and vLLM's after it. Each flag is either read by
vLLM, or sets a setting of Sluice's, or is refused with a sentence; none is accepted without effect. In a settings file,
what vLLM reads stands under `engine:` by vLLM's own names. Flags are written out: abbreviations are refused.

Written by `python -m gateway.engine.vllm.startup.arguments.document`; tests hold it against the tables and
the installed vLLM.
"""


def text() -> str:
    """The whole file."""
    versions = catalog.listed()
    flags: dict[str, Flag] = {}
    since: dict[str, list[str]] = {}
    for version in versions:
        for name, flag in catalog.read(version).flags.items():
            flags[name] = flag
            since.setdefault(name, []).append(version)
    parts = [_HEAD]
    decided = {name: dispositions.of(flag) for name, flag in flags.items()}

    def shown(name: str) -> str:
        only = "" if since[name] == versions else f" ({', '.join(since[name])})"
        return f"`{flags[name].spelled}`{only}"

    rows = [
        f"| {shown(name)} | `{found.setting}` | {found.note} |"
        for name, found in decided.items()
        if found is not None and found.kind is Kind.SETTING
    ]
    parts.append(_table("A setting takes its place", ("flag", "setting", ""), rows))
    rows = [
        f"| {shown(name)} | {found.note} |" for name, found in decided.items() if found and found.kind is Kind.ALWAYS
    ]
    parts.append(_table("Always so", ("flag", ""), rows))
    rows = [
        f"| {shown(name)} | {found.note} |" for name, found in decided.items() if found and found.kind is Kind.REFUSED
    ]
    parts.append(_table("Refused", ("flag", "what to do instead"), rows))
    passed = [name for name, found in decided.items() if found and found.kind is Kind.PASSED]
    rows = [f"| {shown(name)} | {dispositions.PASSED[name]} |" for name in passed if dispositions.PASSED.get(name)]
    parts.append(_table("Read by vLLM, with a remark", ("flag", ""), rows))
    parts.append("## Read by vLLM\n\n" + "\n".join(_by_group(passed, flags, shown)))
    rows = [f"| `{name}` | {note} |" for name, note in variables.lines()]
    parts.append(_table("Variables that concern the server", ("variable", ""), rows))
    parts.append(
        "Every other `VLLM_*` variable is read by the engine as ever. One that vLLM does not know is named in the log\n"
        "at the start, with the nearest that it does.\n"
    )
    return "\n".join(parts)


def _by_group(names: Iterable[str], flags: dict[str, Flag], shown: object) -> Iterable[str]:
    assert callable(shown)
    groups: dict[str, list[str]] = {}
    for name in names:
        group = {"options": "Server", "Frontend": "API"}.get(flags[name].group, flags[name].group)
        groups.setdefault(group, []).append(shown(name))
    return (f"- {group}: {', '.join(members)}" for group, members in groups.items())


def _table(title: str, head: tuple[str, ...], rows: list[str]) -> str:
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows, ""]
    return "\n".join(lines)


def write() -> None:
    """Write the file."""
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text(), encoding="utf-8")


__all__ = ["FILE", "text", "write"]


if __name__ == "__main__":
    write()
