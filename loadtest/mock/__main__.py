"""`python -m loadtest.mock --port P [--plan FILE] [--truth FILE]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvloop

from loadtest.mock.plan import MockPlan, PlanError
from loadtest.mock.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.mock", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000, help="0: a free one; the first line of output names it")
    parser.add_argument("--plan", type=Path, help="YAML, see loadtest/mock/plan.py; default: a steady 20 ms a token")
    parser.add_argument("--truth", type=Path, help="file for the ground truth, as JSON lines, written at the end")
    options = parser.parse_args()
    try:
        plan = MockPlan() if options.plan is None else MockPlan.read(options.plan)
        uvloop.run(serve(plan, options.host, options.port, options.truth))
    except (PlanError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
