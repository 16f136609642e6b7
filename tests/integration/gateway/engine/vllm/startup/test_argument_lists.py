"""The lists of vLLM's flags and variables against the installed vLLM. Another process imports it, because other tests
assert that nothing does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gateway.engine.vllm.compat.check import installed_version, release_of
from gateway.engine.vllm.startup.arguments import catalog, flag_rules, variables

# vLLM's import alone takes up to two minutes on a loaded machine.
pytestmark = pytest.mark.timeout(300)

# Variables of vLLM's other commands, or without effect unless a refused variable is set.
OTHER_COMMANDS = frozenset({"VLLM_RUST_FRONTEND_PATH", "VLLM_USE_RUST_BENCH"})
_ROOT = Path(__file__).parents[6]
_SCRIPT = """
import json, sys
from docs import vllm_flag_lists
from gateway.engine.vllm.startup.arguments import vllm_parser
from gateway.errors import SettingsError

def try_parse(words):
    try:
        args, problems = vllm_parser.parse_argv(words)
    except SettingsError as error:
        return {"problems": error.problems}
    if problems:
        return {"problems": problems}
    args = vars(args)
    return {name: args[name] for name in ("tensor_parallel_size", "optimization_level", "seed")} | {
        "images": str(args["limit_mm_per_prompt"]), "backend": args["structured_outputs_config"].backend,
        "mode": str(args["compilation_config"].mode), "prefix": args["enable_prefix_caching"],
    }

commands = json.load(sys.stdin)
json.dump({"list": vllm_flag_lists.installed_list(), "tried": [try_parse(words) for words in commands]}, sys.stdout)
"""
_TRIED: dict[str, list[str]] = {
    "spellings": [
        *("-tp", "2", "-O3", "--structured-outputs-config.backend", "xgrammar", "-cc.mode=0"),
        *("--limit_mm_per_prompt.image", "1", "--no-enable-prefix-caching", "--seed=-1"),
    ],
    "abbreviated": ["--api-k", "hush"],
    "dest": ["--api-key", "hush"],
    "two": ["-asc", "2"],
    "parser": ["--enable-auto-tool-choice", "--tool-call-parser", "hermess"],
    "reasoning": ["--reasoning-parser", "deepseek_r2"],
    "several": ["--tool-call-parser", "hermess", "--chat-template", "/nope.jinja", "--tokenizer", "./nope"],
    "template": ["--chat-template", "nope.jinja"],
    "value": ["--tensor-parallel-size", "two"],
    "needs": ["--enable-auto-tool-choice"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps(list(_TRIED.values())),
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
        cwd=_ROOT,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["tried"] = dict(zip(_TRIED, found["tried"], strict=True))
    return found


def test_the_list_is_the_installed_vllms(installed: dict[str, Any]) -> None:
    """For a new flag, run `python -m docs.vllm_flag_lists`. A flag of the server needs a rule in flag_rules.py, too."""
    minor = release_of(installed_version())
    assert minor in catalog.listed_versions(), f"vLLM {minor} has no list yet"
    listed = json.loads((catalog.LISTS / f"{minor}.json").read_text(encoding="utf-8"))

    new = sorted(set(installed["list"]["flags"]) - set(listed["flags"]))
    assert new == [], f"flags of vLLM {minor} that are not listed: {new}"
    assert installed["list"] == listed


def test_every_variable_of_vllms_server_is_listed() -> None:
    """Add a new one to a table of variables.py, or to OTHER_COMMANDS."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    read: set[str] = set()
    for file in (Path(spec.origin).parent / "entrypoints").rglob("*.py"):
        read |= set(re.findall(r"envs\.(VLLM_\w+)", file.read_text(encoding="utf-8")))

    assert len(read) > 20
    listed = {*variables.SETTINGS, *variables.REFUSED, *variables.PASSED, *OTHER_COMMANDS}
    assert read - listed == set()
    assert len(listed) == sum(map(len, (variables.SETTINGS, variables.REFUSED, variables.PASSED, OTHER_COMMANDS)))


def test_vllms_parser_accepts_its_own_spellings(installed: dict[str, Any]) -> None:
    found = installed["tried"]["spellings"]

    assert (found["tensor_parallel_size"], str(found["optimization_level"]), found["seed"]) == (2, "3", -1)
    assert (found["backend"], found["prefix"]) == ("xgrammar", False)
    assert "image" in found["images"]
    assert found["mode"].endswith(("0", "NONE"))


@pytest.mark.parametrize(
    ("case", "problems"),
    [
        ("abbreviated", ["--api-k is not a flag of `vllm serve` or `sluice serve`. Did you mean `--api-key`?"]),
        ("dest", [f"--api-key is not for the engine. {flag_rules.REFUSED['api_key']}"]),
        ("two", ["--api-server-count is not for the engine. Use server.workers."]),
        ("parser", ["tool_call_parser: there is no parser 'hermess'. Did you mean `hermes`?"]),
        ("reasoning", ["reasoning_parser: there is no parser 'deepseek_r2'. Did you mean `deepseek_r1`?"]),
        (
            "several",
            [
                "chat_template: /nope.jinja does not exist.",
                "tokenizer: ./nope does not exist.",
                "tool_call_parser: there is no parser 'hermess'. Did you mean `hermes`?",
            ],
        ),
    ],
)
def test_parsed_arguments_are_checked_whatever_their_spelling(
    installed: dict[str, Any], case: str, problems: list[str]
) -> None:
    """The last check, after the lists: it also works with a list of another version."""
    assert installed["tried"][case]["problems"] == problems


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("template", "nope.jinja"),
        ("value", "--tensor-parallel-size"),
        ("needs", "requires --tool-call-parser"),
    ],
)
def test_vllms_own_errors_are_sentences(installed: dict[str, Any], case: str, words: str) -> None:
    (problem,) = installed["tried"][case]["problems"]

    assert words in problem
    assert "Traceback" not in problem
