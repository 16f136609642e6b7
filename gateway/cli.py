"""The command line: parses the words, loads the settings and runs the command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.engine.vllm.startup.arguments import flag_rules, variables, vllm_parser
from gateway.engine.vllm.startup.arguments.command_line import ResolvedFlags, apply_flags, split_words
from gateway.errors import SettingsError

_AFTER = " (after `--`)"
_EPILOG = """\
examples:
  sluice serve                                    the demo model that ships with Sluice
  sluice serve Qwen/Qwen3-8B --port 9000
  sluice serve ./my-model --max-model-len 8192 --enable-auto-tool-choice --tool-call-parser hermes
  sluice check --config sluice.yaml

Settings come from flags, then SLUICE_SECTION__KEY variables, then the YAML file. All flags of `vllm serve` work, too,
and win over `engine:`; words after `--` always go to vLLM (docs/vllm-flags.md lists the flags).
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the `sluice` command."""
    parser = argparse.ArgumentParser(
        prog="sluice",
        description="A streaming inference server for LLMs, built on vLLM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the versions of Sluice and vLLM")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="serve a model",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    serve.add_argument("model", nargs="?", help="a model folder or hub name; without it, the demo model")
    _add_settings(serve)

    check = commands.add_parser(
        "check",
        help="find the problems of a start without starting, and print the effective settings without secrets",
        allow_abbrev=False,
    )
    check.add_argument("model", nargs="?", help=argparse.SUPPRESS)
    _add_settings(check)

    commands.add_parser(
        "engine",
        help="run engines without a server, for a `sluice serve` on another machine",
        usage="sluice engine MODEL [any flag of `vllm serve --headless`]",
        description="Start vLLM's engines for data parallelism, or for one model over several machines. The flags are "
        "those of `vllm serve --headless`; see docs/scaling.md.",
        allow_abbrev=False,
    )

    key = commands.add_parser("key", help="create an API key", allow_abbrev=False)
    kinds = key.add_subparsers(dest="key_command", metavar="COMMAND", required=True)
    new = kinds.add_parser("new", help="print a new key and its line for server.api_keys_file", allow_abbrev=False)
    new.add_argument("name", help="the name of the key, which logs and metrics show")
    new.add_argument(
        "--operator", action="store_true", help="the key also opens operator endpoints (sleep, scaling, ...)"
    )
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML file with settings")
    add("--host", dest="server.host", help="address to listen on (default 127.0.0.1)")
    add("--port", dest="server.port", type=int, help="port to listen on (default 8000; 0: any free one)")
    workers = "front-end processes on one engine (default 1)"
    add("--workers", dest="server.workers", type=int, metavar="N", help=workers)
    add("--api-keys-file", dest="server.api_keys_file", metavar="FILE", help="require a key of FILE")
    concurrent = "sequences in the engine at once (default 256)"
    add("--max-concurrent", dest="admission.max_concurrent", type=int, metavar="N", help=concurrent)
    waiting = "requests in the queue at once (default 512)"
    add("--max-waiting", dest="admission.max_waiting", type=int, metavar="N", help=waiting)
    add("--log-level", dest="log.level", choices=("debug", "info", "warning", "error"), help="default info")
    add("--log-json", dest="log.json", action="store_const", const=True, help="log lines as JSON objects")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0 success, 1 failed to run, 2 wrong usage or settings."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["engine"] and words[1:] not in ([], ["-h"], ["--help"]):
            return _engine(words[1:])
        parser = make_parser()
        words, flags = _split_words(parser, words)
        args = parser.parse_args(words)
        code = _run(parser, args, flags)
        # Flushed here: at Python's exit a closed pipe would print a stack trace.
        sys.stdout.flush()
        return code
    except SettingsError as error:
        for problem in error.problems:
            print(f"sluice: {problem}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _engine(words: list[str]) -> int:
    """`sluice engine`: all words are vLLM's. Unknown flags are reported before vLLM is imported."""
    is_help = any(word.startswith("--help=") for word in words)
    wrong = [] if is_help else split_words(words, {}, place=" (of `sluice engine`)").problems
    if wrong:
        raise SettingsError(*wrong)
    from gateway.engine.vllm.startup import headless

    return headless.run(words)


def _split_words(parser: argparse.ArgumentParser, words: list[str]) -> tuple[list[str], ResolvedFlags]:
    """The words for Sluice's own parser, and vLLM's flags among the others, resolved."""
    resolved = ResolvedFlags()
    command = words[0] if words else ""
    if command not in ("serve", "check"):
        return words, resolved
    cut = words.index("--") if "--" in words else len(words)
    before = split_words(words[1:cut], _options(parser, command))
    after = split_words(words[cut + 1 :], {}, place=_AFTER)
    apply_flags(before.given, resolved)
    apply_flags(after.given, resolved, place=_AFTER)
    resolved.problems[:0] = [*before.problems, *after.problems]
    if after.own_words:
        resolved.model, *more = after.own_words
        resolved.problems += [f"{len(after.own_words)} models are named{_AFTER}; one is served." for _ in more[:1]]
    return [command, *before.own_words], resolved


def _options(parser: argparse.ArgumentParser, command: str) -> dict[str, bool]:
    """The options of a command, and whether each takes a value."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    chosen = commands.choices[command]
    return {option: action.nargs != 0 for option, action in chosen._option_string_actions.items()}


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace, flags: ResolvedFlags) -> int:
    if args.version:
        return _version()
    if args.command == "serve":
        return _serve(args, flags)
    if args.command == "check":
        return _check(args, flags)
    if args.command == "key":
        return _new_key(args.name, args.operator)
    parser.print_help()
    return 2


def _load(args: argparse.Namespace, flags: ResolvedFlags) -> Any:
    from gateway.settings import engine_source, load
    from gateway.settings_errors import CommandContext

    given: dict[str, dict[str, Any]] = {}
    for name, value in vars(args).items():
        section, dot, key = name.partition(".")
        if dot and value is not None:
            given.setdefault(section, {})[key] = value
    for section, values in flags.settings.items():
        given.setdefault(section, {}).update(values)
    problems = [*flags.problems, *variables.problems()]
    if args.model is not None and flags.model not in (None, args.model):
        problems.append("Two models are named; one is served.")
    if args.model is None and flags.model is None and flags.missing_model_problem:
        problems.append(flags.missing_model_problem)
    keys_file = given.get("server", {}).get("api_keys_file")
    if keys_file is not None and str(keys_file).startswith("sk-") and not Path(keys_file).exists():
        problems.append("--api-keys-file takes the name of a file with `name:sha256` lines, not a key.")
    options = {"log.json": "--log-json", **flags.sources}
    options |= {setting: name for name, setting in variables.SETTINGS.items() if setting not in options}
    around = CommandContext(
        options,
        variables.settings(),
        problems,
        hint=flag_rules.setting_hint,
        wrong_keys=lambda engine: vllm_parser.engine_key_problems(
            engine, lambda name: engine_source(args.config, name)
        ),
    )
    return load(given, args.config, around)


def _serve(args: argparse.Namespace, flags: ResolvedFlags) -> int:
    settings = _load(args, flags)
    from gateway import app, engine_plan, logs, server

    logs.configure(**dict(settings.log))
    startup_log = logs.StartupLog()
    _log_warnings()
    model = args.model or flags.model
    if settings.server.workers > 1:
        from gateway.multiprocess.parent import process
        from gateway.multiprocess.worker.process import ServeOptions

        return process.serve(settings, ServeOptions(model, tuple(flags.flags), args.config), startup_log)
    plan = engine_plan.plan_engine(settings, model, flags.flags, args.config, startup_log.begin)

    def build(on_ready: Any, on_failure: Any) -> app.Sluice:
        return app.Sluice.build(settings, plan, on_ready=on_ready, on_failure=on_failure)

    return server.serve(settings, build, startup_log)


def _check(args: argparse.Namespace, flags: ResolvedFlags) -> int:
    settings = _load(args, flags)
    from gateway import engine_plan, logs, preflight
    from gateway.settings import show

    logs.configure(**dict(settings.log))
    startup_log = logs.StartupLog()
    _log_warnings()
    plan = engine_plan.plan_engine(settings, args.model or flags.model, flags.flags, args.config, startup_log.begin)
    problems = preflight.find_problems(settings, plan, startup_log.begin)
    model = args.model or flags.model
    print(show(settings, flags.shown if model is None else {"model": model, **flags.shown}), end="", flush=True)
    if problems:
        raise SettingsError(*problems)
    print("ok", file=sys.stderr)
    return 0


def _log_warnings() -> None:
    for warning in variables.warnings():
        logging.getLogger("sluice").warning("%s", warning)


def _new_key(name: str, operator: bool) -> int:
    from gateway.transports.common.api_keys import new_key

    key, line = new_key(name, operator=operator)
    print(
        "key (clients send it as `Authorization: Bearer <key>` or `x-api-key: <key>`; it is not stored "
        f"anywhere):\n  {key}\n"
        f"line for server.api_keys_file (a running server reads a changed file within seconds):\n  {line}"
    )
    return 0


def _version() -> int:
    from gateway.app import versions

    for name, number in versions().items():
        print(name, number)
    return 0
