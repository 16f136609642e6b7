from __future__ import annotations

import pytest

from gateway.engine.vllm.startup.plan import EnginePlan


@pytest.mark.parametrize(
    ("synthetic", "words"), [(None, "loading the weights"), ({"step_ms": 1}, "leaving out the model")]
)
def test_the_longest_stage_is_reported_with_what_it_does(synthetic: dict[str, float] | None, words: str) -> None:
    stages: list[str] = []
    EnginePlan(engine={}, synthetic=synthetic, on_stage=stages.append).report_starting()

    (stage,) = stages
    assert stage.startswith("starting the engine process")
    assert words in stage
