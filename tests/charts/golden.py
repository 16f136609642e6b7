"""What the scenarios render, checked in, so that a change of the chart shows as a change of its output.

`python -m tests.charts.golden` writes them anew; look at the difference before you commit it.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.charts.chart import CHART, text

GOLDEN = Path(__file__).parent / "golden"
# The shipped values, and one scenario for each way in and each way of scaling.
NAMES = (
    "values-cpu",
    "values-prod",
    "values-multinode",
    "ci/keda-values",
    "ci/routes-values",
    "ci/loadtest-workers-values",
)


def rendered(name: str) -> str:
    """A scenario's output, without what changes with every release of the chart or of a program in it."""
    out = text(CHART / f"{name}.yaml", kubernetes="1.34")
    out = re.sub(r"(helm.sh/chart: sluice-)\S+", r"\1VERSION", out)
    out = re.sub(r"(app.kubernetes.io/version: )\S+", r"\1VERSION", out)
    out = re.sub(r"(checksum/config: )[0-9a-f]{64}", r"\1HASH", out)
    out = re.sub(r"(image: sluice(?:-loadtest)?):\S+", r"\1:VERSION", out)
    out = re.sub(r"(\S+-(?:load|get))-[0-9a-f]{8}", r"\1-HASH", out)
    # Rules, dashboards and programs have files and tests of their own.
    out = re.sub(r"(?m)^  groups:\n(?:    .*\n)+", "  groups: RULES\n", out)
    out = re.sub(r"(?m)^( +)- \|\n(?:\1  .*\n| *\n)+", r"\1- PROGRAM\n", out)
    out = re.sub(r"(?m)^  hold.py: \|\n(?:    .*\n| *\n)+", "  hold.py: PROGRAM\n", out)
    return re.sub(r"(?m)^(  \S+[.]json): \|-\n(?:    .*\n| *\n)+", r"\1: DASHBOARD\n", out)


def path_of(name: str) -> Path:
    return GOLDEN / f"{Path(name).name.removesuffix('-values').removeprefix('values-')}.yaml"


if __name__ == "__main__":
    for one in NAMES:
        path_of(one).write_text(rendered(one), encoding="utf-8")
