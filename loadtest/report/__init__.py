"""A run as a page for people, and as a summary for CI.

- `scale`: axes: from values to places, with ticks that read well; `chart`: one chart as SVG.
- `figures`: which charts a run has; `tables`: which rows.
- `page`: the HTML pages of a run, a sweep and a comparison; `markdown`: the summary.

A page needs nothing but itself: charts are inline SVG that is complete without the script, which only adds what a
pointer shows. All that comes from outside (scenarios, model names, servers' words) is escaped, and the page forbids the
browser any other script.
"""

from __future__ import annotations

from pathlib import Path

from loadtest.measure.result import Result
from loadtest.report import markdown, page

__all__ = ["write"]


def write(result: Result, out: Path) -> None:
    """Write `report.html` and `summary.md` into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.html").write_text(page.render_run(result), encoding="utf-8")
    (out / "summary.md").write_text(markdown.render_run(result), encoding="utf-8")
