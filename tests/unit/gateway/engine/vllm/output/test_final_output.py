from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine.vllm.output.final_output import FinalOutputSplitter


@dataclass
class Choice:
    """As vLLM's CompletionOutput."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | None = None
    logprobs: list[Any] | None = None


@dataclass
class Output:
    """As vLLM's RequestOutput."""

    outputs: list[Choice]
    finished: bool = True
    prompt_token_ids: list[int] = field(default_factory=lambda: [1, 2])


def endings(*, speculative: int | None = None, interval: int = 1) -> FinalOutputSplitter:
    drafts = None if speculative is None else SimpleNamespace(num_speculative_tokens=speculative)
    return FinalOutputSplitter(
        SimpleNamespace(speculative_config=drafts, scheduler_config=SimpleNamespace(stream_interval=interval))
    )


def test_a_merged_ending_comes_after_its_text() -> None:
    merged = Choice(0, "seconds of text", [5, 6, 7], "stop", "END")
    ahead, ending = endings().split(Output([merged]))

    assert ahead == Output([Choice(0, "seconds of text", [5, 6, 7])], finished=False)
    assert ending == Output([Choice(0, "", [], "stop", "END")])
    assert merged.finish_reason == "stop", "what came is left alone"


def test_only_choices_that_were_merged_are_parted() -> None:
    running, single, merged = Choice(0, "a", [1, 2]), Choice(1, "b", [3], "length"), Choice(2, "cd", [4, 5], "stop")
    ahead, ending = endings().split(Output([running, single, merged], finished=False))

    assert ahead.outputs == [running, single, Choice(2, "cd", [4, 5])]
    assert ending.outputs == [Choice(2, "", [], "stop")]


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        (Choice(0, "a", [1], "stop"), {}),
        (Choice(0, "held back for a stop string", [1], "stop"), {}),
        (Choice(0, "", [], "length"), {}),
        (Choice(0, "abc", [1, 2, 3]), {}),
        (Choice(0, "abc", [1, 2, 3], "stop", logprobs=[1, 2, 3]), {}),
        (Choice(0, "abc", [1, 2, 3], "stop"), {"speculative": 2}),
        (Choice(0, "abc", [1, 2, 3], "stop"), {"interval": 3}),
    ],
)
def test_one_output_of_the_engine_stays_together(choice: Choice, config: dict[str, Any]) -> None:
    output = Output([choice])

    assert endings(**config).split(output)[0] is output
