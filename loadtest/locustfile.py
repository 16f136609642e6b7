"""For Locust itself: `locust -f loadtest/locustfile.py --host URL [--scenario NAME|FILE]`, with its web UI or without.

Everything that Locust offers works: `--headless`, `--csv`, `--html`, `--processes`, `--master` and `--worker`. The
scenario defines the load and its duration; `--users` and `--run-time` override it, where given. With `--load-out` a run
without web UI also writes the files of `sluice-load run`, and ends with its exit codes.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from locust import events, stats
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.runner import finish, webui
from loadtest.runner.locust_users import LoadShape, LoadUser, report_to_locust
from loadtest.runner.session import Session
from loadtest.scenario import loader
from loadtest.scenario.loader import LoadedScenario

__all__ = ["LoadShape", "LoadUser"]

stats.PERCENTILES_TO_CHART = [0.5, 0.95, 0.99]
stats.PERCENTILES_TO_STATISTICS = [0.9, 0.95, 0.99]


def _round_to_three_digits(response_time: float) -> int:
    """Locust counts times in buckets of two digits, an error of 5 %; with three digits it is 0.5 %."""
    return int(round(response_time, min(0, 3 - len(str(int(response_time))))))


stats.bucket_response_time = _round_to_three_digits


def _add_options(parser: Any, **_: Any) -> None:
    parser.add_argument(
        "--scenario", default="smoke", help=f"a YAML file, or one of: {', '.join(loader.builtin_names())}"
    )
    parser.add_argument("--rate", type=float, default=None, help="arrivals per second, on average")
    parser.add_argument("--duration", type=float, default=None, help="seconds of the measured stage")
    parser.add_argument("--model", default=None, help="default: the first model in /v1/models")
    parser.add_argument("--seed", type=int, default=None, help="another seed gives other prompts and arrival times")
    parser.add_argument("--api-key", default=None, is_secret=True, help="for tenants without a key of their own")
    parser.add_argument("--metrics-url", default=None, help="the server's metrics, if not at the host")
    parser.add_argument(
        "--load-out", default=None, include_in_web_ui=False, help="folder for result.json and the report (headless)"
    )


def _on_init(environment: Environment, web_ui: Any = None, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    out = Path(options.load_out) if options.load_out else None
    if isinstance(environment.runner, WorkerRunner):
        Session(environment, lambda: _load_scenario(options), report_to_locust, None)
        return
    # Locust would abort requests at that time; a scenario has a drain.
    options.duration, options.run_time = options.duration or options.run_time, None
    options.is_closed = options.num_users is not None
    session = Session(environment, lambda: _load_scenario(options), report_to_locust, out)
    try:
        load = _load_scenario(options).scenario.load
    except loader.ScenarioError as error:
        print(f"locust: {error}", file=sys.stderr)
        sys.exit(2)
    if load.kind == "closed":
        options.is_closed, options.num_users = True, load.users
    if isinstance(environment.shape_class, LoadShape):
        # The form's fields for users and run time make sense in a closed loop only.
        type(environment.shape_class).use_common_options = options.is_closed
    if web_ui is not None:
        webui.add_tabs(web_ui, session)
    else:
        environment.events.quitting.add_listener(lambda **_: _finish(session, environment, out))


def _finish(session: Session, environment: Environment, out: Path | None) -> None:
    if session.failure is None and session.ended.is_set():
        result = finish.finish_run(session, out, " ".join(sys.argv))
        print(finish.to_text(result))
        environment.process_exit_code = result.verdict.exit_code


def _load_scenario(options: Namespace) -> LoadedScenario:
    overrides = {
        # In an open loop the number of users has no meaning, and Locust always has one.
        "users": options.num_users if getattr(options, "is_closed", False) else None,
        "rate": _number("rate", options.rate),
        "duration_s": _number("duration", options.duration),
        "model": options.model or None,
        "seed": None if (seed := _number("seed", options.seed)) is None else int(seed),
        "api_key": options.api_key or None,
        "metrics_url": options.metrics_url or None,
    }
    return loader.load(options.scenario, overrides)


def _number(name: str, given: object) -> float | None:
    """The web UI's form gives text."""
    if given is None or given == "":
        return None
    try:
        return float(str(given))
    except ValueError:
        raise loader.ScenarioError(f"{name}: {given!r} is not a number.") from None


events.init_command_line_parser.add_listener(_add_options)
events.init.add_listener(_on_init)
