from __future__ import annotations

import pytest

from gateway.multiprocess import messages
from gateway.multiprocess.messages import Message

SAMPLES: list[Message] = [
    messages.Ping(),
    messages.EngineUp(3, {"input_address": "ipc:///a", "output_address": "ipc:///b"}, [7]),
    messages.EngineLost(3),
    messages.EngineAbandoned("Too often."),
    messages.PermitGranted(9),
    messages.PermitRefused(7, "The server is full.\nReally.", "queue_full", 12),
    messages.AbortClient(1),
    messages.Drain(2.5),
    messages.Shutdown(),
    messages.ShutdownNow(),
    messages.Pong(),
    messages.WorkerReady(2, "a model", True, 5, {"grammar": 1}, 3, 4),
    messages.EngineUnresponsive(2),
    messages.WorkerFailed("Nö.", 2),
    messages.WorkerDrained(),
    messages.WorkerClosed({"completed": 3}),
    messages.AcquirePermit(1, 4),
    messages.ReleasePermit(1),
]


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_a_decoded_message_is_the_encoded_one(message: Message) -> None:
    line = messages.encode(message)

    assert line.count(b"\n") == 1
    assert messages.decode(line) == message


def test_every_kind_of_message_has_a_sample() -> None:
    kinds = {
        kind for kind in vars(messages).values() if isinstance(kind, type) and kind.__module__ == messages.__name__
    }

    assert {type(message) for message in SAMPLES} == kinds
