from __future__ import annotations

from array import array

import pytest

from loadtest.measure.record import ReadMode, Record
from loadtest.measure.result import ErrorKind

MS = 1_000_000


def record(read_mode: ReadMode = ReadMode.PLAIN, stream: bool = True) -> Record:
    one = Record(7, 1, "chat", "anna", "m", stream, read_mode, intended_ns=10 * MS, started_ns=11 * MS, sent_ns=12 * MS)
    one.content_ns, one.content_tokens = array("q", [100 * MS, 130 * MS, 190 * MS]), array("l", [1, 2, 1])
    one.output_tokens, one.done_ns, one.ended_ns, one.status = 4, 195 * MS, 196 * MS, 200
    return one


def test_times_of_a_stream() -> None:
    one = record()

    assert (one.first_token_ns, one.tpot_us, one.max_gap_us) == (100 * MS, 30_000, 60_000)


@pytest.mark.parametrize("kind", [ErrorKind.TIMEOUT_FIRST, ErrorKind.TIMEOUT_IDLE, ErrorKind.DEADLINE])
def test_giving_up_counts_as_the_first_token(kind: ErrorKind) -> None:
    one = record()
    one.error, one.content_ns = kind, array("q")

    assert one.first_token_ns == 196 * MS


def test_other_errors_have_no_first_token() -> None:
    one = record()
    one.error, one.content_ns = ErrorKind.RESET, array("q")

    assert one.first_token_ns == 0


def test_an_unstreamed_answer_has_neither_gaps_nor_time_per_token() -> None:
    one = record(stream=False)

    assert (one.tpot_us, one.max_gap_us, one.counts_ttft, one.counts_gaps) == (None, None, False, False)


@pytest.mark.parametrize(
    ("read_mode", "counts"),
    [
        (ReadMode.PLAIN, (True, True, True)),
        (ReadMode.CANCEL, (True, True, False)),
        (ReadMode.STALL, (True, False, False)),
        (ReadMode.RESUME, (True, False, False)),
        (ReadMode.SLOW, (False, False, False)),
    ],
)
def test_times_that_the_client_distorts_do_not_count(read_mode: ReadMode, counts: tuple[bool, bool, bool]) -> None:
    one = record(read_mode)

    assert (one.counts_ttft, one.counts_gaps, one.counts_duration) == counts


def test_a_log_line_has_the_documented_fields() -> None:
    assert record().to_log_line(began_ns=10 * MS) == {
        "number": 7, "turn": 1, "workload": "chat", "tenant": "anna", "model": "m", "stream": True, "manner": "plain",
        "status": 200, "error": None, "detail": "", "left_by_plan": False, "resumed": 0, "id": "", "request_id": "",
        "prompt_tokens": 0, "output_tokens": 4, "events": 0, "intended_us": 0, "started_us": 1000, "sent_us": 2000,
        "first_byte_us": None, "first_content_us": 90_000, "last_content_us": 180_000, "done_us": 185_000,
        "ended_us": 186_000, "gaps_us": [30_000, 60_000], "tokens": [1, 2, 1],
    }  # fmt: skip
