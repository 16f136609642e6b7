"""The summary in Markdown, which a CI job shows under a change. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from loadtest.measure.result import Outcome, Result
from loadtest.report import tables

# Links, images, emphasis, HTML, headings and cells; and list markers at the beginning of a line.
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&]|^[+-](?= )|(?<=^\d)[.)](?= ))")
_LATENCY = ("ms", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max")


def render_run(result: Result) -> str:
    """Verdict, reasons, numbers, and the command to repeat the run."""
    run = result.run
    latencies = tables.latencies(result.summary)
    headline = tables.HEADLINES[Outcome(result.verdict.outcome)]
    parts = [
        f"## {escape(run.scenario)}: {headline} (exit code {result.verdict.exit_code})",
        f"{escape(run.model)} at {escape(run.url)}, {run.duration_s:g} s measured, started {escape(run.started_at)}",
        "\n".join(f"- {escape(reason)}" for reason in result.verdict.reasons),
        table(("", "", ""), tables.cards(result.summary)),
        table(_LATENCY, latencies),
    ]
    if tables.has_few_samples(latencies):
        parts.append(escape("* too few values for an upper bound of this percentile"))
    if errors := tables.errors(result.summary):
        parts.append(table(("error", "requests", "share", "meaning"), errors))
    parts.append(f"Again: {_code(run.command)} (seed {run.seed})")
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    return "\n".join(
        "| " + " | ".join(cells) + " |"
        for cells in (lines[0], lines[1], *([escape(cell) for cell in row] for row in rows))
    )


def escape(text: str) -> str:
    """Text that Markdown shows unchanged, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """A code span with a fence longer than any run of backticks inside."""
    text = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"
