"""The command `sluice-load`.

Exit codes: 0: good; 1: the SLO is missed, or a comparison found a regression; 2: wrong usage, or the run could not
begin; 3: the generator was the bottleneck; 4: streams were incomplete or incorrect.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from loadtest.measure.result import Result
from loadtest.scenario import loader
from loadtest.scenario.loader import LoadedScenario, ScenarioError

_EXTRA = {"locust", "gevent", "jinja2", "numpy"}
"""The modules of the extra `loadtest`."""

_EPILOG = """\
examples:
  sluice-load run smoke --url http://127.0.0.1:8000
  sluice-load run chat --url https://llm.example --rate 5 --duration 300 --workers 4 --out runs/monday
  sluice-load run my.yaml --url http://127.0.0.1:8000 --users 50
  sluice-load sweep chat --url http://127.0.0.1:8000 --low 1 --high 64
  sluice-load compare runs/monday runs/tuesday

exit codes: 0 good, 1 SLO missed or regression, 2 wrong usage or no server, 3 the generator was too slow for the run to
prove anything, 4 streams were incomplete or incorrect
"""


class _Parser(argparse.ArgumentParser):
    """Reports unknown options without the values that follow them, which may be a key."""

    def error(self, message: str) -> NoReturn:
        prefix, marker, unknown = message.partition("unrecognized arguments: ")
        options = [word.partition("=")[0] for word in unknown.split() if word.startswith("-")]
        super().error(f"{prefix}{marker}{' '.join(options) or unknown}" if marker else message)


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sluice-load",
        description="Load tests of OpenAI-compatible streaming servers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    # Without abbreviations: an abbreviated --api-key would not be masked in the report.
    run = commands.add_parser("run", help="run a scenario and judge it", allow_abbrev=False)
    _add_run(run)
    run.add_argument("--rate", type=_positive, metavar="R", help="arrivals per second on average (open loop)")
    run.add_argument("--users", type=int, metavar="N", help="users, each with one request at a time (closed loop)")
    run.set_defaults(do=_run)

    sweep = commands.add_parser("sweep", help="find the highest rate that meets the SLO", allow_abbrev=False)
    _add_run(sweep)
    sweep.add_argument("--low", type=_positive, default=1.0, metavar="R", help="first rate (default 1)")
    sweep.add_argument("--high", type=_positive, default=1024.0, metavar="R", help="highest rate tried (default 1024)")
    sweep.add_argument(
        "--precision", type=_positive, default=0.05, metavar="P", help="precision of the limit (default 0.05: 5 %%)"
    )
    sweep.add_argument("--replicas", type=_count, default=1, metavar="N", help="servers behind the URL (default 1)")
    sweep.set_defaults(do=_sweep)

    compare = commands.add_parser("compare", help="compare two runs, with confidence intervals")
    compare.add_argument("a", type=Path, help="folder or result.json of the run to compare with")
    compare.add_argument("b", type=Path, help="folder or result.json of the newer run")
    compare.add_argument("--out", type=Path, metavar="DIR", help="folder for compare.html and compare.md")
    compare.set_defaults(do=_compare)

    report = commands.add_parser("report", help="write the report of a run again")
    report.add_argument("run", type=Path, help="folder or result.json")
    report.add_argument("--out", type=Path, metavar="DIR", help="default: beside the result")
    report.set_defaults(do=_report)

    scenarios = commands.add_parser("scenarios", help="list the scenarios of the package")
    scenarios.set_defaults(do=_scenarios)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", help=f"a YAML file, or one of: {', '.join(loader.builtin_names())}")
    parser.add_argument("--url", required=True, help="the server, without /v1: http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path("load-out"), metavar="DIR", help="default: load-out")
    parser.add_argument("--duration", type=_positive, metavar="S", help="seconds of the measured stage")
    parser.add_argument("--warmup", type=float, metavar="S", help="seconds of the warm-up")
    parser.add_argument("--model", metavar="NAME", help="default: the first model in /v1/models")
    parser.add_argument("--seed", type=int, metavar="N", help="another seed gives other prompts and arrival times")
    parser.add_argument("--api-key", metavar="KEY", help="for tenants without a key of their own")
    parser.add_argument("--metrics-url", metavar="URL", help="the server's metrics, if not at --url")
    parser.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="processes that send requests (default 1)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = make_parser().parse_args(arguments)
    args.arguments = arguments
    try:
        return int(args.do(args))
    except (ScenarioError, UsageError) as error:
        print(f"sluice-load: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # The command comes with every installation of Sluice, the modules that it needs only with the extra.
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(
            f"sluice-load: {error.name} is missing. Install the extra: pip install 'sluice[loadtest]'", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        return 130


class UsageError(Exception):
    """The command cannot be executed; the message has the reason."""


def _run(args: argparse.Namespace) -> int:
    result = _measure(args, _loaded(args, rate=args.rate, users=args.users), args.out)
    from loadtest.runner import finish

    print(finish.to_text(result))
    print(f"written to {args.out}/: report.html, summary.md, result.json, requests.jsonl.gz")
    return result.verdict.exit_code


def _measure(args: argparse.Namespace, loaded: LoadedScenario, out: Path) -> Result:
    url, command = _url(args.url), shlex.join(["sluice-load", *_hidden(args.arguments)])
    # Importing Locust patches the process and takes a second.
    from loadtest.generator.preflight import PreflightError
    from loadtest.runner import run

    try:
        return run.run_scenario(loaded, url, out, args.workers, command, _print_line)
    except PreflightError as error:
        raise UsageError(str(error)) from None


def _sweep(args: argparse.Namespace) -> int:
    from loadtest.analysis.sweep import sweep

    scenario = _loaded(args).scenario
    slo, seeds = scenario.slo, count(scenario.seed)

    def measure(rate: float) -> Result:
        # A repetition with the same requests at the same times would prove less.
        seed = next(seeds)
        return _measure(args, _loaded(args, rate=rate, seed=seed), args.out / f"rate-{rate:g}-seed-{seed}")

    try:
        result = sweep(measure, slo, args.low, args.high, args.precision, replicas=args.replicas, on_step=_print_line)
    except ValueError as error:
        raise UsageError(str(error)) from None
    result.write(args.out)
    print(result.text())
    print(f"written to {args.out}/: sweep.html, sweep.json, and each run in a folder of its own")
    return 0 if result.limit is not None else 1


def _compare(args: argparse.Namespace) -> int:
    from loadtest.analysis.compare import compare

    compared = compare(_read(args.a), _read(args.b))
    print(compared.text())
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "compare.html").write_text(compared.html(), encoding="utf-8")
        (args.out / "compare.md").write_text(compared.markdown(), encoding="utf-8")
    return 1 if compared.has_regressed else 0


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _loaded(args: argparse.Namespace, **more: Any) -> LoadedScenario:
    return loader.load(
        args.scenario,
        {
            "duration_s": args.duration,
            "warmup_s": args.warmup,
            "model": args.model,
            "seed": args.seed,
            "api_key": args.api_key,
            "metrics_url": args.metrics_url,
            **more,
        },
    )


def _url(given: str) -> str:
    url = given.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url: {given!r} is not a URL; write it like http://127.0.0.1:8000")
    return url


def _read(place: Path) -> Result:
    file = place / "result.json" if place.is_dir() else place
    try:
        return Result.read(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}. Give the folder of a run.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UsageError(f"{file} is not a result of a run: {where}: {problem['msg']}.") from None


def _report(args: argparse.Namespace) -> int:
    from loadtest import report

    result = _read(args.run)
    out = args.out or (args.run if args.run.is_dir() else args.run.parent)
    report.write(result, out)
    print(f"written to {out}/: report.html, summary.md")
    return 0


def _scenarios(_: argparse.Namespace) -> int:
    for name in loader.builtin_names():
        comment = (loader.BUILTIN_FOLDER / f"{name}.yaml").read_text().partition("\n")[0]
        print(f"{name:8} {comment.removeprefix('# ')}")
    return 0


def _hidden(arguments: Sequence[str]) -> list[str]:
    """The command line with its API key masked."""
    hidden = list(arguments)
    for number, word in enumerate(arguments):
        if word == "--api-key" and number + 1 < len(arguments):
            hidden[number + 1] = "********"
        elif word.startswith("--api-key="):
            hidden[number] = "--api-key=********"
    return hidden


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
