"""Writes the list of the installed vLLM's flags and variables: `python -m docs.vllm_flag_lists`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gateway.engine.vllm.compat.check import installed_version, release_of
from gateway.engine.vllm.startup.arguments import catalog


def flags_of(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Every argument of a parser by name, with hidden spellings."""
    groups = {id(action): group.title for group in parser._action_groups for action in group._group_actions}
    spellings: dict[int, list[str]] = {}
    for option, action in parser._option_string_actions.items():
        spellings.setdefault(id(action), []).append(option)
    found: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        if action.dest in ("help", "model_tag"):
            continue
        negative = _negative(action, spellings[id(action)])
        found[action.dest] = {
            "group": groups[id(action)],
            "options": [option for option in spellings[id(action)] if option not in negative],
            "negative": negative,
            "values": {0: "none", None: "one", "?": "optional", "+": "many", "*": "many"}[action.nargs],
        }
    return found


def _negative(action: argparse.Action, options: list[str]) -> list[str]:
    if not isinstance(action, argparse.BooleanOptionalAction):
        return []
    # In vLLM 0.33 an action may also pair --enable-x with --disable-x.
    named = getattr(action, "negative_option_strings", None)
    return [option for option in options if (option.startswith("--no-") if named is None else option in named)]


def installed_list() -> dict[str, Any]:
    """The list of the installed vLLM, which this imports."""
    from vllm import envs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from gateway.engine.vllm.compat.imports import cli_args

    return {
        "version": installed_version(),
        "flags": flags_of(cli_args().make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))),
        "variables": sorted(name for name in envs.environment_variables if name.startswith("VLLM_")),
    }


def text_of(document: dict[str, Any]) -> str:
    """The list as the text of a file, one flag on each line."""
    flags = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in document["flags"].items())
    variables = ",\n".join(json.dumps(name) for name in document["variables"])
    version = json.dumps(document["version"])
    return f'{{"version": {version},\n"flags": {{\n{flags}\n}},\n"variables": [\n{variables}\n]}}\n'


def main() -> None:
    """Write the list; `make docs` then writes the table of the documentation."""
    file = catalog.LISTS / f"{release_of(installed_version())}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text_of(installed_list()), encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
