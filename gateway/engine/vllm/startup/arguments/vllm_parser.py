"""vLLM's own parser, for arguments that the lists have let pass. Only functions import vLLM, because that is slow."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gateway.engine.vllm.compat.imports import cli_args
from gateway.engine.vllm.startup.arguments import catalog, flag_rules
from gateway.engine.vllm.startup.arguments.command_line import unknown_flag_problem
from gateway.errors import SettingsError
from gateway.hints import did_you_mean, nearest

_SECRET = re.compile("token|secret|passw|key|credential", re.IGNORECASE)
# Arguments that may name a file or a folder.
_PATHS = (
    "chat_template",
    "generation_config",
    "hf_config_path",
    "model",
    "reasoning_parser_plugin",
    "tokenizer",
    "tool_parser_plugin",
)


def engine_key_problems(engine: Mapping[str, Any], source: Callable[[str], str]) -> list[str]:
    """A sentence for each key of `engine:` that vLLM does not have, or that is not for the engine."""
    known = catalog.installed_catalog()
    found = []
    for key in engine:
        name = key.partition(".")[0].replace("-", "_")
        if (reason := flag_rules.engine_refusal(name)) is not None:
            found.append(f"engine.{key} ({source(key)}) is not an engine setting here. {reason}")
        elif name not in known.flags and known.complete:
            hint = did_you_mean(nearest(name, known.flags))
            found.append(f"engine.{key} ({source(key)}) is not a vLLM engine argument.{hint}")
    return found


def to_argv(engine: Mapping[str, Any]) -> list[str]:
    """Arguments by vLLM's names, as flags of `vllm serve`."""
    argv: list[str] = []
    for name, value in engine.items():
        if value is None:
            continue
        base, dot, path = name.partition(".")
        option = "--" + base.replace("_", "-") + dot + path
        # Values from the environment are text.
        if isinstance(value, bool) or str(value).lower() in ("true", "false"):
            argv.extend(_boolean_flag(option, base.replace("-", "_"), path, str(value).lower() == "true"))
        elif isinstance(value, (list, tuple)) and not path:
            argv.extend([option, *(_text(item) for item in value)])
        else:
            text = _text(value)
            argv.extend([f"{option}={text}"] if text.startswith("-") else [option, text])
    return argv


def _boolean_flag(option: str, name: str, path: str, on: bool) -> list[str]:
    flag = catalog.installed_catalog().flags.get(name)
    if path or (flag is not None and flag.values != "none"):
        return [option, str(on).lower()]
    if on:
        return [option]
    if flag is None:
        return ["--no-" + option[2:]]
    # A flag without a negative form is off when it is absent.
    return list(flag.negative[:1])


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def parse_argv(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """vLLM's namespace for that command line, and a sentence for each problem. Raises SettingsError without a
    namespace."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc,unused-ignore]
        def error(self, message: str) -> Any:
            if message.startswith("unrecognized arguments: "):
                # The other words may be values, and those may be secrets.
                unknown = [word for word in message.split()[2:] if word.startswith("-")]
                options = list(self._option_string_actions)
                raise SettingsError(
                    *(unknown_flag_problem(word, "", options) for word in unknown or ["a word without a flag"])
                )
            reason = without_secrets(message, argv).rstrip(".")
            raise SettingsError(f"vLLM does not accept these engine settings: {reason}.")

    parser = cli_args().make_arg_parser(Parser(prog="vllm serve", allow_abbrev=False))
    try:
        args = parser.parse_args(list(argv))
    except SettingsError:
        raise
    except Exception as error:
        reason = without_secrets(_sentence(error), argv)
        raise SettingsError(f"vLLM does not accept these engine settings: {reason}") from None
    if args.model_tag is not None:
        args.model = args.model_tag
    problems = [*_non_engine_problems(args, parser), *missing_file_problems(vars(args)), *_parser_problems(args)]
    try:
        cli_args().validate_parsed_serve_args(args)
    except Exception as error:
        if not problems:
            problems = [f"vLLM does not accept these engine settings: {_sentence(error)}"]
    return args, problems


def without_secrets(message: str, argv: Sequence[str]) -> str:
    """vLLM's message, which may repeat values, without values that may be secrets."""
    for word in argv:
        value = word.partition("=")[2] if word.startswith("--") and "=" in word else word
        if not value.startswith("-") and _SECRET.search(word):
            message = message.replace(value, "(its value)").replace(repr(value), "(its value)")
    return message


def _non_engine_problems(args: Any, parser: Any) -> Iterable[str]:
    """A sentence for each argument that is set and is not for the engine, whatever its spelling was."""
    for name in (*flag_rules.SETTINGS, *flag_rules.REFUSED):
        if hasattr(args, name) and getattr(args, name) != parser.get_default(name):
            yield f"--{name.replace('_', '-')} is not for the engine. {flag_rules.engine_refusal(name)}"


def missing_file_problems(arguments: Mapping[str, Any]) -> list[str]:
    """A sentence for each argument whose file or folder does not exist."""
    found = []
    for name in _PATHS:
        value = arguments.get(name)
        if isinstance(value, str) and is_missing_path(value):
            found.append(f"{name}: {value} does not exist.")
    for module in arguments.get("lora_modules") or ():
        path = getattr(module, "path", None)
        if isinstance(path, str) and is_missing_path(path):
            found.append(f"lora_modules: {path} does not exist.")
    return found


def is_missing_path(value: str) -> bool:
    """Whether `value` is a path that does not exist. A template may also be given as its text."""
    is_path = value.startswith(("/", "./", "../", "~")) and not set(value) & set("{}\n")
    return is_path and not os.path.exists(os.path.expanduser(value))


def _parser_problems(args: Any) -> Iterable[str]:
    """Load plug-ins with parsers, as vLLM's server does. Returns a sentence for each parser that does not exist."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for option, plugin, load in (
        ("tool_parser_plugin", args.tool_parser_plugin, ToolParserManager.import_tool_parser),
        ("reasoning_parser_plugin", args.reasoning_parser_plugin, ReasoningParserManager.import_reasoning_parser),
    ):
        if plugin and len(plugin) > 3 and not is_missing_path(plugin):
            load(plugin)
            continue
        if plugin and not is_missing_path(plugin):
            yield f"{option}: {plugin} is not the path of a Python file."
    for option, asked, manager in (
        ("tool_call_parser", args.tool_call_parser, ToolParserManager),
        ("reasoning_parser", args.reasoning_parser, ReasoningParserManager),
    ):
        names = manager.list_registered()
        if asked and asked not in names:
            hint = did_you_mean(nearest(asked, names)) or f" vLLM has: {', '.join(names)}."
            yield f"{option}: there is no parser {asked!r}.{hint}"


def _sentence(error: Exception) -> str:
    """The first line of the message, without vLLM's "Error: "."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Error: ").rstrip(".") + "."
