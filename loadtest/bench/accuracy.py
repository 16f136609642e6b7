"""Compares the load generator with an independent ground truth: `python -m loadtest.bench.accuracy`.

A mock upstream on one core, the generator on another, about 500 streams at a time. The run's report is compared with
the mock's record: TTFT, ITL and longest gaps within 2 % or 1 ms at p50, p90 and p99, and every stream, gap and token
counted. The differences contain the way through the kernel and the delays of the generator.

- steady: every gap alike; varied: lognormal gaps; bursts: all streams in the same instant, as an engine's steps are
- merged: several tokens an event; stalls: one stream in twenty stops for 1.5 s
- frozen: the mock blocks for 2 s; requests that are due meanwhile must count from when they were due

The recorded times are the truth, so a mock that was late by its plan (noted below the table) only makes other times
than were planned. A run that is invalid is noted, too: then the machine was too busy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.bench.check_truth import CheckedFigure, compare, is_causality_violated, match_requests, read_lines
from loadtest.measure.result import Result
from loadtest.mock.child import running_mock
from loadtest.mock.plan import MockPlan

# At 80 ms, 500 streams are 6,250 events a second, which a Python client reads with less than half of a core.
ITL_MS, TOKENS, STREAMS = 80.0, 100, 500
TTFT = {"kind": "lognormal", "mean": 200, "cv": 0.4}


@dataclass(frozen=True, slots=True)
class Case:
    """The mock's plan, and the load."""

    name: str
    plan: dict[str, Any]
    itl_ms: float = ITL_MS
    tokens: int = TOKENS
    streams: int = STREAMS
    warmup_s: float = 10
    measure_s: float = 20
    load: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """The rate that keeps about `streams` open at a time."""
        return self.streams / (0.2 + self.tokens * self.itl_ms / 1000)


CASES = (
    Case("steady", {"ttft_ms": TTFT, "itl_ms": ITL_MS}),
    Case("varied", {"ttft_ms": TTFT, "itl_ms": {"kind": "lognormal", "mean": ITL_MS, "cv": 0.5}}),
    Case("bursts", {"ttft_ms": TTFT, "itl_ms": ITL_MS, "steps": True}),
    Case(
        "merged",
        {"ttft_ms": TTFT, "itl_ms": ITL_MS, "tokens_per_event": {"kind": "choice", "values": [1, 2, 5]}},
        tokens=267,
    ),
    Case(
        "stalls",
        {
            "ttft_ms": TTFT,
            "itl_ms": ITL_MS,
            "faults": [{"kind": "stall", "share": 0.05, "after": 20, "seconds": 1.5}],
        },
    ),
    Case(
        "frozen",
        {"ttft_ms": TTFT, "itl_ms": ITL_MS, "freezes": [{"at_s": 15, "for_s": 2}]},
        tokens=20,
        streams=100,
        load={"kind": "constant"},
    ),
)


@dataclass(frozen=True, slots=True)
class CaseResult:
    case: Case
    result: Result
    rows: list[CheckedFigure]
    mock: dict[str, Any]
    is_causality_violated: bool
    events_per_s: float

    @property
    def is_met(self) -> bool:
        return all(row.is_met for row in self.rows) and not self.is_causality_violated


def scenario(case: Case, seed: int = 1) -> dict[str, Any]:
    """The generator's scenario."""
    return {
        "name": case.name,
        "seed": seed,
        "stages": {"warmup_s": case.warmup_s, "measure_s": case.measure_s, "drain_s": 20},
        "load": {"kind": "poisson", "rate": case.rate} | case.load,
        "workloads": [{"name": "chat", "prompt_tokens": 20, "output_tokens": case.tokens}],
    }


def run_case(case: Case, folder: Path, mock_cpus: set[int] | None, client_cpus: set[int] | None) -> CaseResult:
    """Run the generator as a command of its own. Raises SystemExit with its last output if it wrote no result."""
    with running_mock(folder, MockPlan.model_validate(case.plan), mock_cpus) as mock:
        scenario_file = folder / "scenario.yaml"
        scenario_file.write_text(json.dumps(scenario(case)), encoding="utf-8")
        out = folder / "out"
        argv = [sys.executable, "-m", "loadtest.cli", "run", str(scenario_file), "--url", mock.url, "--out", str(out)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if client_cpus is not None:
            os.sched_setaffinity(process.pid, client_cpus)
        output, _ = process.communicate()
        truth = mock.end()
    if not (out / "result.json").exists():
        raise SystemExit(f"the generator ended with code {process.returncode}:\n{output[-3000:]}")
    result = Result.read(out / "result.json")
    matched = match_requests(result, read_lines(out), truth)
    return CaseResult(
        case=case,
        result=result,
        # Requests that arrive while the mock is frozen are read afterwards: its record does not have the wait.
        rows=[
            row
            for row in compare(result, matched, truth)
            if not (case.plan.get("freezes") and row.metric == "TTFT from arrival")
        ],
        mock=truth.mock,
        is_causality_violated=is_causality_violated(matched),
        events_per_s=result.generator.events / result.run.duration_s,
    )


def report(case_result: CaseResult) -> None:
    generator = case_result.result.generator
    print(f"\n{case_result.case.name}: {case_result.case.streams} streams, {case_result.events_per_s:.0f} events/s")
    print(f"{'':<24}{'':>8}{'reported':>11}{'true':>11}{'difference':>12}{'allowed':>9}")
    for row in case_result.rows:
        mark = "" if row.is_met else "  missed"
        print(
            f"{row.metric:<24}{row.name:>8}{row.reported:>11.2f}{row.expected:>11.2f}{row.difference:>+12.2f}"
            f"{row.allowed:>9.2f}{mark}"
        )
    late = case_result.mock["start_lateness_ms"]
    output = (
        "on time"
        if case_result.mock["on_time"]
        else "late by its plan, which changes the truth but not the record of it"
    )
    print(f"mock: {output}; p99 {late['p99']} ms, max {late['max']} ms")
    print(
        f"generator: {generator.cpu_us_per_event} us CPU an event, lateness p99 {generator.lateness_ms.p99} ms, "
        f"loop lag p99 {generator.loop_lag_ms.p99} ms, CPU share {generator.cpu_share_max:.2f}"
    )
    for reason in generator.invalid:
        print(f"generator invalid: {reason}")
    if case_result.is_causality_violated:
        print("a time of the client is wrong: an effect comes before its cause")


def as_json(case_result: CaseResult) -> dict[str, Any]:
    generator = case_result.result.generator
    return {
        "case": case_result.case.name,
        "met": case_result.is_met,
        "events_per_s": case_result.events_per_s,
        "cpu_us_per_event": generator.cpu_us_per_event,
        "generator_invalid": generator.invalid,
        "mock": case_result.mock,
        "rows": [
            {"metric": row.metric, "name": row.name, "reported": row.reported, "true": row.expected}
            for row in case_result.rows
        ],
    }


def main() -> None:
    """Run the cases, print tables, then one line of JSON each; exit code 1 if a number was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--case", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("two CPUs are needed: one for the mock, one for the generator")
    documents = []
    met = True
    for case in CASES:
        if case.name in options.case:
            with tempfile.TemporaryDirectory() as folder:
                case_result = run_case(case, Path(folder), {cpus[0]}, {cpus[1]})
            report(case_result)
            documents.append(as_json(case_result))
            met = met and case_result.is_met
    if options.json is not None:
        options.json.write_text(json.dumps(documents, indent=1), encoding="utf-8")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
