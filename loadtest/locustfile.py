"""For Locust itself: `locust -f loadtest/locustfile.py --host URL [--scenario NAME|FILE]`, with its web UI or without.

Everything that Locust offers works: `--headless`, `--csv`, `--html`, `--processes`, `--master` and `--worker`. The
scenario says how many requests there are and for how long; `--users` and `--run-time` override that, where given. With
`--load-out` a run without web UI also writes what `sluice-load run` writes, and ends with its exit codes.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from locust import events, stats
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest import library, outcome, webui
from loadtest.library import Loaded
from loadtest.session import Session
from loadtest.user import LoadShape, LoadUser, tell

__all__ = ["LoadShape", "LoadUser"]

stats.PERCENTILES_TO_CHART = [0.5, 0.95, 0.99]
stats.PERCENTILES_TO_STATISTICS = [0.9, 0.95, 0.99]


def _three_digits(response_time: float) -> int:
    """Locust counts times in buckets of two digits, which is 5 % off; three are 0.5 %."""
    digits = len(str(int(response_time)))
    return round(response_time, min(0, 3 - digits)) if response_time else 0  # type: ignore[return-value]


@events.init_command_line_parser.add_listener
def _options(parser: Any, **_: Any) -> None:
    group = parser.add_argument_group("Streams", "What is asked, and how often")
    group.add_argument("--scenario", default="smoke", help=f"a YAML file, or one of: {', '.join(library.ready())}")
    group.add_argument("--rate", type=float, default=None, help="arrivals per second, on average")
    group.add_argument("--duration", type=float, default=None, help="seconds of the measured stage")
    group.add_argument("--model", default=None, help="default: the first that the server names")
    group.add_argument("--seed", type=int, default=None, help="another one asks other questions at other times")
    group.add_argument("--api-key", default=None, is_secret=True, help="for tenants without a key of their own")
    group.add_argument(
        "--load-out", default=None, include_in_web_ui=False, help="folder for result.json and the report (headless)"
    )


@events.init.add_listener
def _init(environment: Environment, web_ui: Any = None, **_: Any) -> None:
    options = environment.parsed_options
    assert options is not None
    # Locust would cut requests off at that time; a scenario has a drain.
    run_time_s, options.run_time = options.run_time, None
    users = options.num_users
    out = Path(options.load_out) if options.load_out else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    is_worker = isinstance(environment.runner, WorkerRunner)
    session = Session(environment, lambda: _chosen(options, users, run_time_s), tell, out)
    if is_worker:
        return
    if isinstance(environment.shape_class, LoadShape):
        try:
            environment.shape_class.use_common_options = _chosen(options, users, run_time_s).scenario.is_closed
        except library.ScenarioError as error:
            print(f"locust: {error}", file=sys.stderr)
            sys.exit(2)
    if web_ui is not None:
        webui.extend(web_ui, session)
    else:

        @environment.events.quitting.add_listener
        def _quitting(**_: Any) -> None:
            outcome.conclude(session, environment, out)


def _chosen(options: Namespace, users: int | None, run_time_s: float | None) -> Loaded:
    overrides = {
        "users": users,
        "rate": options.rate,
        "duration_s": options.duration if options.duration is not None else run_time_s,
        "model": options.model or None,
        "seed": options.seed,
        "api_key": options.api_key or None,
    }
    loaded = library.load(options.scenario, overrides)
    if loaded.scenario.is_closed and users is None and options.num_users:
        # What the web UI's form says.
        loaded = library.load(options.scenario, {**overrides, "users": options.num_users})
    return loaded
