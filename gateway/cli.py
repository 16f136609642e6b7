"""The command line: parse, load settings, run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.errors import SettingsError

_EPILOG = """\
examples:
  sluice serve                                    the demo model that ships with Sluice
  sluice serve Qwen/Qwen3-8B --port 9000
  sluice serve ./my-model -- --max-model-len 8192 --enable-auto-tool-choice --tool-call-parser hermes
  sluice check --config sluice.yaml

Settings come from flags, then SLUICE_SECTION__KEY variables, then the YAML file. What stands after `--` goes to
vLLM and wins over `engine:`.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the `sluice` command."""
    parser = argparse.ArgumentParser(
        prog="sluice",
        description="A streaming inference server for LLMs, built on vLLM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the versions of Sluice and vLLM")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="serve a model", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    serve.add_argument("model", nargs="?", help="a model folder or hub name; without it, the demo model")
    _add_settings(serve)

    check = commands.add_parser("check", help="validate the settings and print the effective ones, secrets hidden")
    check.add_argument("model", nargs="?", help=argparse.SUPPRESS)
    _add_settings(check)

    key = commands.add_parser("key", help="make an API key")
    kinds = key.add_subparsers(dest="key_command", metavar="COMMAND", required=True)
    new = kinds.add_parser("new", help="print a new key, and the line for server.api_keys_file")
    new.add_argument("name", help="whose key it is; appears in logs")
    new.add_argument(
        "--operator", action="store_true", help="may also use the endpoints that run the server (sleep, scaling, ...)"
    )
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    parser.add_argument("--host", dest="server.host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--port", dest="server.port", type=int, help="port to listen on (default 8000; 0: any free one)"
    )
    parser.add_argument(
        "--workers", dest="server.workers", type=int, metavar="N", help="front-end processes on one engine (default 1)"
    )
    parser.add_argument("--api-keys-file", dest="server.api_keys_file", metavar="FILE", help="ask for the keys in FILE")
    parser.add_argument(
        "--max-concurrent",
        dest="admission.max_concurrent",
        type=int,
        metavar="N",
        help="sequences in the engine at once (default 256)",
    )
    parser.add_argument(
        "--max-waiting",
        dest="admission.max_waiting",
        type=int,
        metavar="N",
        help="requests that may wait (default 512)",
    )
    parser.add_argument(
        "--log-level", dest="log.level", choices=("debug", "info", "warning", "error"), help="default info"
    )
    parser.add_argument(
        "--log-json", dest="log.json", action="store_const", const=True, help="log lines as JSON objects"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 well, 1 failed to run, 2 wrong usage or settings."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags: list[str] = []
    if "--" in words:
        cut = words.index("--")
        words, flags = words[:cut], words[cut + 1 :]
    parser = make_parser()
    args = parser.parse_args(words)
    try:
        code = _run(parser, args, flags)
        # Now, and not when Python exits, where a reader who has gone would be a stack on stderr.
        sys.stdout.flush()
        return code
    except SettingsError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace, flags: Sequence[str]) -> int:
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


def _load(args: argparse.Namespace) -> Any:
    from gateway.settings import load

    given: dict[str, dict[str, Any]] = {}
    for name, value in vars(args).items():
        section, dot, key = name.partition(".")
        if dot and value is not None:
            given.setdefault(section, {})[key] = value
    return load(given, args.config)


def _serve(args: argparse.Namespace, flags: Sequence[str]) -> int:
    from gateway import app, logs, server

    settings = _load(args)
    logs.configure(settings.log.level, settings.log.as_json)
    watch = logs.Stopwatch()
    if settings.server.workers > 1:
        from gateway.workers import house

        return house.serve(settings, house.Wanted(args.model, tuple(flags), args.config), watch)
    plan = app.plan_engine(settings, args.model, flags, args.config, watch.say)

    def build(on_ready: Any, on_failure: Any) -> app.Sluice:
        return app.Sluice.build(settings, plan, on_ready=on_ready, on_failure=on_failure)

    return server.serve(settings, build, watch)


def _check(args: argparse.Namespace, flags: Sequence[str]) -> int:
    from gateway import app
    from gateway.settings import show

    settings = _load(args)
    app.check(settings, app.plan_engine(settings, args.model, flags, args.config, lambda _: None))
    print(show(settings), end="")
    return 0


def _new_key(name: str, operator: bool) -> int:
    from gateway.app import new_key

    key, line = new_key(name, operator=operator)
    print(
        "key (for the client, who sends it as `Authorization: Bearer <key>` or `x-api-key: <key>`; it is not stored "
        f"anywhere):\n  {key}\n"
        f"line for server.api_keys_file (a running server reads a changed file within seconds):\n  {line}"
    )
    return 0


def _version() -> int:
    from gateway.app import versions

    for name, number in versions().items():
        print(name, number)
    return 0


__all__ = ["main", "make_parser"]
