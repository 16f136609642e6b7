"""Tabs of Locust's web UI: streams, errors by kind, and measurements of the generator. Tables only: the charts are
Locust's own."""

from __future__ import annotations

import csv
import io

from flask import Response, request
from locust.web import WebUI

from loadtest.measure.histogram import Histogram
from loadtest.runner.session import Session
from loadtest.runner.summarise import CollectedRun

Row = dict[str, object]
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
_TIMES = (("TTFT", "ttft"), ("TTFT from sending", "ttft_sent"), ("ITL", "itl"), ("TPOT", "tpot"), ("E2E", "e2e"), ("Longest gap", "stall"))  # fmt: skip  # noqa: E501

# key -> (title, columns)
_TABS: dict[str, tuple[str, list[str]]] = {
    "load-streams": (
        "Streams",
        ["workload", "tenant", "what", "count", "mean_ms", *(f"{q}_ms" for q, _ in _QUANTILES)],
    ),
    "load-errors": ("Error kinds", ["workload", "tenant", "kind", "count"]),
    "load-generator": ("Generator", ["what", "value", "allowed"]),
}


def add_tabs(ui: WebUI, session: Session) -> None:
    """Add the tabs, their data and their CSV files."""
    ui.template_args["extended_tabs"] = [{"title": title, "key": key} for key, (title, _) in _TABS.items()]
    ui.template_args["extended_tables"] = [
        {"key": key, "structure": [{"key": name, "title": name.replace("_", " ")} for name in names]}
        for key, (_, names) in _TABS.items()
    ]
    ui.template_args["extended_csv_files"] = [
        {"href": f"/{key}/csv", "title": f"Download {title.lower()} CSV"} for key, (title, _) in _TABS.items()
    ]

    app = ui.app
    assert app is not None

    def answer(response: Response) -> Response:
        if request.path.endswith("/stats/requests"):
            rows = _rows(session.collect())
            extended = [{"key": key, "data": data} for key, data in rows.items()]
            response.set_data(app.json.dumps({**(response.json or {}), "extended_stats": extended}))
        return response

    def download(key: str) -> Response:
        return Response(
            _csv(_TABS[key][1], _rows(session.collect())[key]),
            mimetype="text/csv",
            headers={"Content-Disposition": f"attachment; filename={key}.csv"},
        )

    app.after_request(answer)
    for key in _TABS:
        app.add_url_rule(f"/{key}/csv", key, ui.auth_required_if_enabled(lambda key=key: download(key)))


def _rows(collected: CollectedRun | None) -> dict[str, list[Row]]:
    if collected is None:
        return {key: [] for key in _TABS}
    groups = sorted(collected.aggregates.groups.items())
    return {
        "load-streams": [
            {"workload": workload, "tenant": tenant, "what": what, **_latency_columns(getattr(numbers, name))}
            for (workload, tenant), numbers in groups
            for what, name in _TIMES
        ],
        "load-errors": [
            {"workload": workload, "tenant": tenant, "kind": kind, "count": count}
            for (workload, tenant), numbers in groups
            for kind, count in numbers.errors.most_common()
        ],
        "load-generator": _generator_rows(collected),
    }


def _latency_columns(collected: Histogram) -> Row:
    def ms(value: float | None) -> float | None:
        return None if value is None else round(value / 1000, 2)

    return {
        "count": collected.count,
        "mean_ms": ms(collected.mean),
        **{f"{name}_ms": ms(collected.quantile(q)) for name, q in _QUANTILES},
    }


def _generator_rows(collected: CollectedRun) -> list[Row]:
    generator, limits = collected.generator(), collected.scenario.generator
    summary = collected.summary()
    return [
        {"what": "lateness p99, ms", "value": generator.lateness_ms.p99, "allowed": limits.lateness_p99_ms},
        {
            "what": "loop lag p99, ms (at the end)",
            "value": generator.loop_lag_ms.p99,
            "allowed": limits.loop_lag_p99_ms,
        },
        {"what": "largest CPU share (at the end)", "value": generator.cpu_share_max, "allowed": limits.cpu_share_max},
        {"what": "due requests in the measured stage", "value": collected.aggregates.due_count, "allowed": None},
        {"what": "sent requests in the measured stage", "value": collected.aggregates.sent_count, "allowed": None},
        {"what": "dropped arrivals", "value": generator.dropped_arrivals, "allowed": 0},
        {"what": "output tokens per second", "value": summary.output_tokens_per_s, "allowed": None},
        {
            "what": "incomplete or incorrect streams",
            "value": sum(collected.aggregates.violations.values()),
            "allowed": 0,
        },
    ]


def _csv(names: list[str], rows: list[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
