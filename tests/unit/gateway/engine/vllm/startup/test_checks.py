"""What of an engine's start can be computed before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.engine.vllm.startup.checks import memory_problem, weight_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("weights", "kv_cache", "utilization", "free", "expected"),
    [
        (4, None, 0.9, 20, None),
        (4, 2, 0.9, 7, None),
        (4, 4, 0.9, 7, "4.0 GiB of weights and 4.0 GiB of KV cache"),
        (4, None, 0.9, 10, "gpu_memory_utilization=0.9 asks for 18.0 of 20.0 GiB, but 10.0 GiB are free"),
        (19, None, 0.9, 20, "the weights take 19.0 GiB, of 18.0 GiB"),
    ],
)
def test_a_model_that_does_not_fit_is_reported_with_its_sizes(
    weights: int, kv_cache: int | None, utilization: float, free: int, expected: str | None
) -> None:
    explicit = None if kv_cache is None else kv_cache * GIB
    found = memory_problem(weights * GIB, explicit, utilization, 20 * GIB, free * GIB)

    assert found is None if expected is None else expected in (found or "")


def test_weights_are_those_that_the_index_names(tmp_path: Path) -> None:
    for name, size in (("a.safetensors", 10), ("b.safetensors", 20), ("consolidated.safetensors", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    assert weight_bytes(tmp_path) == 530

    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert weight_bytes(tmp_path) == 30
    assert weight_bytes(tmp_path / "none") == 0
