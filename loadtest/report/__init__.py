"""Renders results as HTML pages and as a summary for CI.

- `scale`: axes: from values to positions, with round ticks; `chart`: one chart as SVG; `strip`: an interval as SVG.
- `figures`: the charts of a run; `tables`: its rows.
- `page`: the HTML pages of a run, a sweep and a comparison; `markdown`: the summary.

A page is self-contained: its charts are inline SVG, complete without the script, which only adds values under the
pointer. All text from outside (scenarios, model names, servers' messages) is escaped, and the page forbids the browser
any other script.
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
