"""The mock keeps to its plan and records the truth. Times are compared by their medians: the machine is shared."""

from __future__ import annotations

import json
import socket
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadtest.mock.child import running_mock
from loadtest.mock.ground_truth import GroundTruth, TrueRecord
from loadtest.mock.plan import MockPlan
from tests.integration.loadtest.mock.raw_client import begin, finish

TOLERANCE_MS = 1.0


def run(folder: Path, plan: dict[str, Any], requests: int, **body: Any) -> GroundTruth:
    """All requests at once, each read to its end."""
    with running_mock(folder, MockPlan.model_validate(plan)) as mock:
        raws = [begin(mock.port, headers={"X-Request-Id": str(number)}, **body) for number in range(requests)]
        for raw in raws:
            assert finish(raw).complete
        return mock.end()


def gaps_ms(record: TrueRecord) -> list[float]:
    return [(b - a) / 1e6 for a, b in pairwise(record.sent_ns)]


def ttft_ms(record: TrueRecord) -> float:
    return (record.sent_ns[0] - record.arrived_ns) / 1e6


def test_tokens_are_sent_at_the_planned_times(tmp_path: Path) -> None:
    truth = run(tmp_path, {"ttft_ms": 60, "itl_ms": 7.5}, 20, max_tokens=40)

    assert statistics.median(map(ttft_ms, truth.records)) == pytest.approx(60, abs=TOLERANCE_MS)
    gaps = [gap for record in truth.records for gap in gaps_ms(record)]
    assert len(gaps) == 20 * 39
    assert statistics.median(gaps) == pytest.approx(7.5, abs=TOLERANCE_MS)
    # Lateness does not add up over a stream.
    whole = [(record.sent_ns[-1] - record.sent_ns[0]) / 1e6 for record in truth.records]
    assert statistics.median(whole) == pytest.approx(39 * 7.5, abs=2 * TOLERANCE_MS)


def test_lateness_is_recorded(tmp_path: Path) -> None:
    truth = run(tmp_path, {"ttft_ms": 30, "itl_ms": 10}, 4, max_tokens=30)

    assert truth.mock["send_lateness_ms"]["count"] == 4 * 30
    late = [ttft_ms(record) - 30 for record in truth.records]
    assert max(late) <= truth.mock["send_lateness_ms"]["max"] + 0.5
    assert truth.is_on_time == (truth.mock["start_lateness_ms"]["p99"] <= 1)


def test_random_times_depend_only_on_seed_and_order(tmp_path: Path) -> None:
    plan = {"ttft_ms": {"kind": "lognormal", "mean": 40, "cv": 0.5}, "itl_ms": 1}

    def drawn(seed: int, folder: str) -> dict[str, float]:
        truth = run(tmp_path / folder, {**plan, "seed": seed}, 12, max_tokens=1)
        return {record.request_id: ttft_ms(record) for record in truth.records}

    one, same, other = drawn(1, "a"), drawn(1, "b"), drawn(2, "c")
    apart = [abs(one[name] - same[name]) for name in one]
    assert statistics.median(apart) < TOLERANCE_MS
    assert statistics.median(abs(one[name] - other[name]) for name in one) > 5 * TOLERANCE_MS


def test_in_steps_all_streams_get_their_tokens_in_the_same_instant(tmp_path: Path) -> None:
    truth = run(tmp_path, {"ttft_ms": 40, "itl_ms": 25, "steps": True}, 20, max_tokens=20)
    instants = sorted(at for record in truth.records for at in record.sent_ns)
    steps = [[instants[0]]]
    for at in instants[1:]:
        if at - steps[-1][0] > 12.5e6:
            steps.append([])
        steps[-1].append(at)

    assert len(steps) <= 24, "20 tokens each, begun within a few steps"
    assert max(map(len, steps)) == 20
    full = [step for step in steps if len(step) == 20]
    assert statistics.median((step[-1] - step[0]) / 1e6 for step in full) < 5
    apart = [(b[0] - a[0]) / 1e6 for a, b in pairwise(full)]
    assert statistics.median(apart) == pytest.approx(25, abs=TOLERANCE_MS)


def test_several_tokens_leave_in_one_event(tmp_path: Path) -> None:
    plan = {"ttft_ms": 5, "itl_ms": 2, "tokens_per_event": {"kind": "choice", "values": [2, 3]}}
    for record in run(tmp_path, plan, 5, max_tokens=51).records:
        assert sum(record.tokens) == 51
        assert set(record.tokens[:-1]) == {2, 3}


@pytest.mark.parametrize(
    ("plan", "expected_ms"),
    [
        ({"freezes": [{"at_s": 0.1, "for_s": 0.4}]}, 400),
        ({"accept_delay_s": 0.3}, 0),
    ],
)
def test_a_freeze_is_a_gap_in_every_stream_and_a_slow_accept_in_none(
    tmp_path: Path, plan: dict[str, Any], expected_ms: float
) -> None:
    truth = run(tmp_path, {"ttft_ms": 10, "itl_ms": 10, **plan}, 5, max_tokens=30)

    for record in truth.records:
        assert max(gaps_ms(record)) == pytest.approx(10 + expected_ms, abs=20)


def test_a_slow_accept_is_seen_by_the_client(tmp_path: Path) -> None:
    with running_mock(tmp_path, MockPlan.model_validate({"ttft_ms": 1, "itl_ms": 1, "accept_delay_s": 0.3})) as mock:
        began = time.perf_counter()
        finish(begin(mock.port))

    assert time.perf_counter() - began > 0.29


def test_a_freeze_answers_no_request_until_it_ends(tmp_path: Path) -> None:
    plan = MockPlan.model_validate({"ttft_ms": 5, "itl_ms": 5, "freezes": [{"at_s": 0.05, "for_s": 0.4}]})
    with running_mock(tmp_path, plan) as mock:
        finish(begin(mock.port, max_tokens=2))
        time.sleep(0.1)
        late = begin(mock.port, max_tokens=2, headers={"X-Request-Id": "late"})
        sent_ns = time.perf_counter_ns()
        finish(late)
        (record,) = [one for one in mock.end().records if one.request_id == "late"]

    assert (record.arrived_ns - sent_ns) / 1e6 > 200, "read when the freeze was over"


def test_faults_go_to_their_share_of_requests(tmp_path: Path) -> None:
    plan = MockPlan.model_validate(
        {"ttft_ms": 1, "itl_ms": 1, "faults": [{"kind": "http_500", "share": 0.3}, {"kind": "no_done", "share": 0.2}]}
    )
    with running_mock(tmp_path, plan) as mock:
        for _ in range(200):
            finish(begin(mock.port, max_tokens=1))
        faults = [record.fault for record in mock.end().records]

    assert [faults.count(kind) for kind in ("http_500", "no_done", None)] == pytest.approx([60, 40, 100], abs=20)


def test_a_client_that_does_not_read_does_not_stop_the_others(tmp_path: Path) -> None:
    with running_mock(tmp_path, MockPlan.model_validate({"ttft_ms": 1, "itl_ms": 0.02})) as mock:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", mock.port))
        body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 50_000}).encode()
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.3)
        assert finish(begin(mock.port)).complete
        slow.settimeout(20)
        seen = b""
        while b"[DONE]" not in seen[-40:]:
            seen = seen[-40:] + slow.recv(1 << 20)
        slow.close()


def test_a_truncated_ground_truth_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "truth.jsonl").write_text("")

    with pytest.raises(ValueError, match="SIGTERM"):
        GroundTruth.read(tmp_path / "truth.jsonl")
