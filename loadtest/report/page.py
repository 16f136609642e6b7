"""The HTML pages: one self-contained file each."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from loadtest.measure.result import Outcome, Result
from loadtest.report import figures, tables


def render_run(result: Result) -> str:
    """The report of one run."""
    latencies = tables.latencies(result.summary)
    length_s = result.timeline[-1].t_s + 1 if result.timeline else 1
    return render(
        "run.html",
        {
            "title": f"{result.run.scenario}: {tables.HEADLINES[Outcome(result.verdict.outcome)]}",
            "result": result,
            "headline": tables.HEADLINES[Outcome(result.verdict.outcome)],
            "cards": tables.cards(result.summary),
            "checks": tables.checks(result.verdict.checks),
            "latencies": latencies,
            "weak": tables.has_few_samples(latencies),
            "curves": figures.percentile_charts(result),
            "over_time": figures.timeline_charts(result),
            "errors": tables.errors(result.summary),
            "groups": tables.groups(result.groups),
            "fairness": tables.fairness(result.groups),
            "server": tables.server(result),
            "server_charts": figures.server_charts(result.server, length_s, figures.unmeasured_bands(result)),
            "generator": tables.generator(result),
            "integrity": tables.integrity(result),
        },
    )


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page from a template. `values` are escaped, except charts, which escape their own text (`__html__`)."""
    hashes = {"style_hash": _hash("style.css"), "script_hash": _hash("hover.js")}
    return _environment().get_template(template).render({**values, **hashes})


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("loadtest.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _hash(asset: str) -> str:
    """Of the text between the tags, for the content security policy: the browser accepts this text and no other."""
    text = _environment().get_template(asset).render()
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
