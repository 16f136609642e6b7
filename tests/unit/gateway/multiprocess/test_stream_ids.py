from __future__ import annotations

import uuid

import pytest

from gateway.domain import Endpoint
from gateway.multiprocess import stream_ids


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("number", [0, 1, 15, 16, stream_ids.MAX_WORKERS - 1])
def test_an_id_names_its_worker(endpoint: Endpoint, number: int) -> None:
    assert stream_ids.worker_of(endpoint.id_prefix + stream_ids.new(number)) == number


def test_ids_cannot_be_guessed() -> None:
    """96 random bits at the least: an id is all that is needed to read or cancel a stream where keys are off."""
    made = {stream_ids.new(1) for _ in range(1000)}

    assert len(made) == 1000
    assert all(len(bytes.fromhex(one[3:])) * 8 >= 96 for one in made)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "resp_98cfc3b897b72a0f",
        f"chatcmpl-{uuid.UUID(int=0).hex}",
        stream_ids.new(1),
        "chatcmpl-" + stream_ids.new(1)[:-1],
        "chatcmpl-" + stream_ids.new(1) + "0",
        "chatcmpl-" + stream_ids.new(1) + "\n",
        "chatcmpl-w" + "0" * 29 + "g",
    ],
)
def test_other_ids_name_no_worker(name: str) -> None:
    assert stream_ids.worker_of(name) is None
