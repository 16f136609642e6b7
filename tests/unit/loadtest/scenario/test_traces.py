"""Recorded loads: arrivals and lengths, and errors with the line of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loadtest.scenario import traces
from loadtest.scenario.arrivals import TraceReplay
from loadtest.scenario.traces import TraceError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:46.6805900,879,0
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 7319, "output_length": 490, "hash_ids": [0, 4]}

{"timestamp": 6052, "input_length": 7234, "output_length": 794, "hash_ids": [0]}
"""


def trace(folder: Path, text: str, form: Any, **more: Any) -> TraceReplay:
    (folder / "trace").write_text(text)
    return TraceReplay(kind="trace", file=str(folder / "trace"), format=form, **more)


def test_azure(tmp_path: Path) -> None:
    found = list(traces.read_trace(trace(tmp_path, AZURE, "azure"), 1, 60.0))

    assert [(round(one.at_s, 3), one.prompt_tokens, one.output_tokens) for one in found] == [
        (0, 374, 44),
        (4.315, 396, 109),
    ]
    assert list(traces.read_trace(trace(tmp_path, AZURE, "azure"), 1, 61.0))[-1].output_tokens == 1, (
        "no request can have 0"
    )


def test_mooncake(tmp_path: Path) -> None:
    found = list(traces.read_trace(trace(tmp_path, MOONCAKE, "mooncake", speed=2), 1, 60.0))

    assert [one.at_s for one in found] == pytest.approx([0, 0, 1.526])
    assert found[1].blocks == (0, 4)
    assert found[1].prompt_tokens == 7319


def test_a_share_of_a_trace(tmp_path: Path) -> None:
    text = "".join(f'{{"timestamp": {at}, "input_length": 5, "output_length": 5}}\n' for at in range(1000))
    found = list(traces.read_trace(trace(tmp_path, text, "mooncake", share=0.3), 1, 60.0))

    assert 250 < len(found) < 350
    assert found == list(traces.read_trace(trace(tmp_path, text, "mooncake", share=0.3), 1, 60.0))


@pytest.mark.parametrize(
    ("text", "form", "place"),
    [
        ("a,b\n1,2\n", "azure", "line 1: no column ContextTokens"),
        (AZURE + "yesterday,1,2\n", "azure", "line 5"),
        (AZURE + "2023-11-16 18:16:47,many,2\n", "azure", "line 5"),
        (AZURE + "2023-11-16 18:10:00,1,2\n", "azure", "line 5: the time goes back"),
        (MOONCAKE + '{"timestamp": 1}\n', "mooncake", "line 5: no 'input_length'"),
        (MOONCAKE + "{\n", "mooncake", "line 5"),
    ],
)
def test_an_invalid_trace_is_rejected_with_its_line(tmp_path: Path, text: str, form: str, place: str) -> None:
    with pytest.raises(TraceError, match=place):
        list(traces.read_trace(trace(tmp_path, text, form), 1, 1e6))


def test_a_missing_trace() -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        list(traces.read_trace(TraceReplay(kind="trace", file="/nowhere", format="azure"), 1, 1.0))
