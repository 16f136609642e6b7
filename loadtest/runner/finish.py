"""The end of a run: its result document, the verdict, the files."""

from __future__ import annotations

import os
import platform
import shutil
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from loadtest import report
from loadtest.analysis.verdict import judge
from loadtest.measure.result import LatencyStats, Result, Run, Server
from loadtest.runner.run_plan import to_perf_counter_ns
from loadtest.runner.session import Session
from loadtest.runner.summarise import CollectedRun
from loadtest.scenario.behaviours import Cancel
from loadtest.server_metrics import scraper


def finish_run(session: Session, out: Path | None, command: str) -> Result:
    """The result of a run that has ended, written to `out` if given."""
    loaded, server_info, collected = session.inputs.loaded, session.inputs.server_info, session.collected
    assert collected is not None
    summary = collected.summary()
    freed = _was_freed(session, collected)
    generator, integrity = collected.generator(), collected.integrity(freed)
    server = _server_metrics(session, collected, summary.ttft_from_sent_ms)
    stages = loaded.scenario.stages
    result = Result(
        run=Run(
            scenario=loaded.scenario.name,
            scenario_yaml=loaded.masked_yaml(),
            url=session.url,
            model=server_info.model,
            seed=loaded.scenario.seed,
            started_at=datetime.fromtimestamp(session.began_s, UTC).isoformat(timespec="seconds"),
            warmup_s=stages.warmup_s,
            duration_s=stages.measure_s,
            command=command,
            versions=_versions(server_info.version),
            machine=_machine(),
        ),
        summary=summary,
        groups=collected.groups(),
        timeline=collected.timeline(),
        generator=generator,
        server=server,
        integrity=integrity,
        verdict=judge(summary, generator, integrity, server, loaded.scenario.slo),
        schema="sluice-load/1",
    )
    if out is not None:
        _write(result, out, collected.workers)
    return result


def to_text(result: Result) -> str:
    """The result in a few lines for a terminal."""
    summary, verdict = result.summary, result.verdict
    due_rate = "" if summary.asked_rps is None else f" of {summary.asked_rps:.2f} due"
    failed = sum(summary.errors_by_kind.values())
    lines = [
        "",
        f"{summary.requests} requests: {summary.ok} ok, {summary.cancelled_by_plan} cancelled by plan, {failed} errors",
        f"{summary.achieved_rps:.2f} requests/s{due_rate}, {summary.output_tokens_per_s:.0f} output tokens/s",
        *(f"  {count} x {kind}" for kind, count in summary.errors_by_kind.items()),
        f"{'ms':12}{'count':>9}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
    ]
    rows = {"TTFT": summary.ttft_ms, "ITL": summary.itl_ms, "TPOT": summary.tpot_ms, "E2E": summary.e2e_ms}
    lines += [_row(name, stats) for name, stats in rows.items()]
    generator = result.generator
    lines.append(
        f"generator: {generator.workers} workers, sent late p99 {_ms(generator.lateness_ms.p99)} ms, loop lag p99 "
        f"{_ms(generator.loop_lag_ms.p99)} ms, CPU at most {generator.cpu_share_max:.0%}, {generator.events} events"
        + (f", {generator.cpu_us_per_event:.0f} us each" if generator.cpu_us_per_event is not None else "")
    )
    lines.append(
        f"integrity: {result.integrity.checked_streams} streams checked, "
        f"{sum(result.integrity.violations.values())} incomplete or incorrect"
        + (f", {verified} tokens verified" if (verified := result.integrity.verified_tokens) else "")
    )
    return "\n".join([*lines, f"verdict: {verdict.outcome}", *(f"  {reason}" for reason in verdict.reasons)])


def _row(name: str, stats: LatencyStats) -> str:
    values = (stats.mean, stats.p50, stats.p90, stats.p99, stats.max)
    return f"{name:12}{stats.count:>9}" + "".join(f"{_ms(value):>10}" for value in values)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _was_freed(session: Session, collected: CollectedRun) -> bool | None:
    """Whether the server released the resources of cancelled requests; None if the scenario has no cancels."""
    cancels = any(
        isinstance(stats, Cancel) for workload in collected.scenario.workloads for stats in workload.behaviours
    )
    if not cancels or session.scraper is None:
        return None
    return scraper.wait_until_freed(
        session.metrics_urls, session.headers, collected.scenario.freed_within_s, session.scraper.baseline, session.ping
    )


def _server_metrics(session: Session, collected: CollectedRun, ttft: LatencyStats) -> Server:
    tokens = collected.client_tokens()
    if session.scraper is None:
        return Server(scraped=False, client_tokens=tokens, notes=["not scraped: the generator had a single process"])
    session.scraper.stop()
    stages = collected.scenario.stages
    began = to_perf_counter_ns(session.began_s) / 1e9
    return session.scraper.to_result(began, tokens, ttft.mean, (stages.warmup_s, stages.arrivals_s))


def _write(result: Result, out: Path, workers: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    parts = [file for index in range(workers) if (file := out / f"requests.{index}.jsonl.gz").exists()]
    with (out / "requests.jsonl.gz").open("wb") as log:
        for file in parts:
            with file.open("rb") as part:
                shutil.copyfileobj(part, log)
            file.unlink()
    result.write(out / "result.json")
    report.write(result, out)


def _versions(server: str) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("sluice", "locust", "gevent", "httptools"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions | ({"server": server} if server else {})


def _machine() -> str:
    processor = platform.processor() or platform.machine()
    return f"{platform.system()} {platform.release()}, {processor}, {os.cpu_count()} CPUs"
