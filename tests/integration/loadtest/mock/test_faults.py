"""Each fault, over a raw socket."""

from __future__ import annotations

import json
import re
import time

import pytest

from loadtest.mock.child import MockProcess
from loadtest.mock.faults import FaultKind
from tests.integration.loadtest.mock.raw_client import CHAT, TEXT, begin, finish, request, request_with_fault
from tests.integration.loadtest.mock.test_app import gauges

TESTED: set[str] = set()


def fault(*kinds: str) -> pytest.MarkDecorator:
    """Records the kinds for the last test of this file, which checks that all are tested."""
    TESTED.update(kinds)
    return pytest.mark.parametrize("kind", kinds)


@fault("http_400", "http_429", "http_500", "http_503")
def test_a_status(mock: MockProcess, kind: str) -> None:
    answer = request_with_fault(mock.port, kind, retry_after_s=7)

    assert answer.status == int(kind[-3:])
    assert ("retry-after: 7" in answer.head) == (kind in {"http_429", "http_503"})
    assert "message" in json.loads(answer.body)["error"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("rst", [False, True])
@fault("cut")
def test_a_cut_within_an_event(mock: MockProcess, kind: str, path: str, rst: bool) -> None:
    raw = begin(mock.port, path, {"X-Mock-Fault": json.dumps({"kind": kind, "after": 2, "byte": 9, "rst": rst})})
    raw.read_until(b'" 1"')
    # The bytes that have arrived are read before the RST could discard them.
    answer = finish(raw)

    assert answer.reset == rst
    assert not answer.complete
    assert b'" 2"' not in answer.body
    if not rst:
        assert answer.body.endswith(b'\n\ndata: {"i')


@fault("cut")
def test_an_unstreamed_answer_is_cut_too(mock: MockProcess, kind: str) -> None:
    answer = request(mock.port, headers={"X-Mock-Fault": json.dumps({"kind": kind, "byte": 5})}, stream=False)

    assert int(re.findall(r"content-length: (\d+)", answer.head)[0]) > 5
    assert len(answer.body) == 5


@fault("error_event")
def test_an_error_in_band(mock: MockProcess, kind: str) -> None:
    answer = request_with_fault(mock.port, kind)

    assert answer.text == " 0 1 2"
    assert answer.documents[-1]["error"]["code"] == "engine_failed"
    assert answer.events[-1] == b"[DONE]"
    assert answer.complete


@fault("stall")
def test_a_stall_that_ends(mock: MockProcess, kind: str) -> None:
    raw = begin(mock.port, headers={"X-Mock-Fault": json.dumps({"kind": kind, "after": 2, "seconds": 0.2})})
    raw.read_until(b'" 1"')
    began = time.perf_counter()
    raw.read_until(b'" 2"')

    assert time.perf_counter() - began > 0.18
    assert finish(raw).text == " 0 1 2 3 4 5 6 7"


@pytest.mark.parametrize(("after", "marker"), [(0, b"HTTP/1.1 200"), (2, b'" 1"')])
@fault("stall")
def test_a_stall_that_does_not(mock: MockProcess, kind: str, after: int, marker: bytes) -> None:
    raw = begin(mock.port, headers={"X-Mock-Fault": json.dumps({"kind": kind, "after": after})})
    raw.read_until(marker)
    raw.sock.settimeout(0.2)

    with pytest.raises(TimeoutError):
        raw.read_all()
    raw.close()


@fault("silence")
def test_no_answer_at_all(mock: MockProcess, kind: str) -> None:
    raw = begin(mock.port, headers={"X-Mock-Fault": kind})
    raw.sock.settimeout(0.2)

    with pytest.raises(TimeoutError):
        raw.read_all()
    assert raw.seen == b""
    raw.close()


@fault("no_done")
def test_no_done(mock: MockProcess, kind: str) -> None:
    answer = request_with_fault(mock.port, kind)

    assert answer.complete
    assert b"[DONE]" not in answer.body
    assert answer.finishes == ["length"]


@fault("no_finish", "two_finishes")
def test_too_few_and_too_many_finishes(mock: MockProcess, kind: str) -> None:
    assert request_with_fault(mock.port, kind).finishes == {"no_finish": [], "two_finishes": ["length", "stop"]}[kind]


@fault("no_usage", "wrong_usage")
def test_no_usage_and_a_wrong_one(mock: MockProcess, kind: str) -> None:
    found = [document["usage"] for document in request_with_fault(mock.port, kind).documents if "usage" in document]

    assert [usage["completion_tokens"] for usage in found] == {"no_usage": [], "wrong_usage": [15]}[kind]


@fault("after_done")
def test_a_token_behind_the_end(mock: MockProcess, kind: str) -> None:
    answer = request_with_fault(mock.port, kind)

    assert answer.events[-2] == b"[DONE]"
    assert b'" 8"' in answer.events[-1]


@fault("out_of_order")
def test_two_events_change_places(mock: MockProcess, kind: str) -> None:
    answer = request(mock.port, headers={"X-Mock-Fault": kind, "X-Stream-Resumable": "5"})

    assert answer.text == " 0 1 2 4 3 5 6 7"
    assert re.findall(rb"id: (\d+)", answer.body) == [b"1", b"2", b"3", b"5", b"4", b"6", b"7", b"8", b"9", b"10"]


@fault("cross_talk")
def test_one_event_of_another_stream(mock: MockProcess, kind: str) -> None:
    ids = [document["id"] for document in request_with_fault(mock.port, kind).documents]

    assert ids[3] == "cmpl-of-another-stream"
    assert set(ids) - {ids[0]} == {ids[3]}


@fault("wrong_token")
def test_one_wrong_token_id(mock: MockProcess, kind: str) -> None:
    right = request(mock.port, return_token_ids=True).documents
    wrong = request(mock.port, headers={"X-Mock-Fault": kind}, return_token_ids=True).documents

    def ids(documents: list[dict[str, object]]) -> list[int]:
        return [choice["token_ids"][0] for one in documents for choice in one["choices"]]  # type: ignore[attr-defined]

    assert [place for place, (a, b) in enumerate(zip(ids(right), ids(wrong), strict=True)) if a != b] == [3]


@fault("garbage_json")
def test_half_a_document(mock: MockProcess, kind: str) -> None:
    answer = request_with_fault(mock.port, kind)

    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.events[3])
    assert answer.complete


@fault("bad_event")
def test_json_that_is_not_a_chunk(mock: MockProcess, kind: str) -> None:
    assert json.loads(request_with_fault(mock.port, kind).events[3]) == {"choices": "none"}


@fault("half_character")
def test_half_a_character_in_each_of_two_events(mock: MockProcess, kind: str) -> None:
    answer = request_with_fault(mock.port, kind)

    for place in (3, 4):
        with pytest.raises(UnicodeDecodeError):
            answer.events[place].decode()


@fault("split_character")
def test_a_character_in_two_writes(mock: MockProcess, kind: str) -> None:
    raw = begin(mock.port, headers={"X-Mock-Fault": kind})
    first = raw.read_until(b"\xc3")
    answer = finish(raw)

    assert first.endswith(b"\xc3"), "the other half is not there yet"
    assert answer.text == " 0 1 2é 4 5 6 7"


@fault("leak")
def test_work_that_goes_on_without_its_client(mock: MockProcess, kind: str) -> None:
    before = gauges(mock)["vllm:num_requests_running"]
    raw = begin(mock.port, headers={"X-Mock-Fault": kind}, max_tokens=100_000)
    raw.read_until(b'" 1"')
    raw.close()
    time.sleep(0.1)

    assert gauges(mock)["vllm:num_requests_running"] == before + 1


def test_the_body_can_name_a_fault_in_its_user(mock: MockProcess) -> None:
    assert request(mock.port, user="http_429").status == 429
    assert request(mock.port, user="anna").complete


def test_an_unknown_fault_is_rejected_with_a_list_of_faults(mock: MockProcess) -> None:
    answer = request(mock.port, headers={"X-Mock-Fault": "cot"})

    assert answer.status == 400
    assert "one of" in json.loads(answer.body)["error"]["message"]


def test_every_fault_has_its_test() -> None:
    assert set(FaultKind) == TESTED
