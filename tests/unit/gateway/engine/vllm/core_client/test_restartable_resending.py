"""Which requests go on in the next engine, and which fail with the dead one."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.time import in_virtual_time, settle
from tests.unit.gateway.engine.vllm.core_client.stub_core import Bench, Core, outputs
from tests.unit.gateway.engine.vllm.stub_vllm import Died, beside_stub


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with beside_stub(monkeypatch, "core_client.restartable") as module:
        yield module


class Happening(enum.IntEnum):
    """vLLM's kinds of events of a request, by its names."""

    QUEUED = 1
    SCHEDULED = 2
    PREEMPTED = 3


@in_virtual_time
async def test_requests_that_can_go_on_are_sent_again_behind_their_tokens(core: Any) -> None:
    bench = Bench(core)
    await bench.add("begun", [7, 8])
    await bench.add("waiting", [], params_seed=1, params_temperature=1.0)
    await bench.add("pooling", None, sampling_params=None)
    await bench.add("over", [9])
    await bench.add("aborted", [9])
    bench.first.outputs.put_nowait(outputs(("over", "stop"), ("begun", None)))
    await bench.core.get_output_async()
    await bench.core.abort_requests_async(["aborted"])
    bench.core.mark_lost()
    recovery = await bench.core.replace(bench.second)

    assert [(one.request_id, one.prompt_token_ids) for one in bench.second.added] == [
        ("begun", [1, 2, 3, 7, 8]),
        ("waiting", [1, 2, 3]),
        ("pooling", [1, 2, 3]),
    ]
    assert recovery.continued == 3


@in_virtual_time
async def test_a_resent_request_has_no_second_time_in_the_queue(core: Any) -> None:
    """vLLM takes the last time of queueing and the first of scheduling, which was another engine's."""
    bench = Bench(core)
    await bench.add("begun", [7])
    await bench.add("waiting", [])
    bench.core.mark_lost()
    await bench.core.replace(bench.second)
    output = outputs(("begun", None), ("waiting", None))
    for one in output.outputs:
        one.events = [SimpleNamespace(type=kind) for kind in Happening]
    bench.second.outputs.put_nowait(output)
    begun, waiting = (await bench.core.get_output_async()).outputs

    assert [event.type for event in begun.events] == [Happening.SCHEDULED, Happening.PREEMPTED]
    assert [event.type for event in waiting.events] == list(Happening)


@in_virtual_time
async def test_a_request_that_arrives_while_there_is_no_engine_goes_to_the_next(core: Any) -> None:
    bench = Bench(core)
    bench.core.mark_lost()
    await bench.add("new", [])

    assert bench.first.added == []

    await bench.core.replace(bench.second)

    assert [one.request_id for one in bench.second.added] == ["new"]


@in_virtual_time
async def test_a_request_to_a_dead_engine_finds_its_death(core: Any) -> None:
    bench = Bench(core)
    bench.first.dead = True
    await bench.add("new", [])

    assert bench.core.lost.is_set()

    await bench.core.replace(bench.second)

    assert [one.request_id for one in bench.second.added] == ["new"]


@in_virtual_time
async def test_requests_added_or_aborted_during_a_replay_are_sent_once_or_not_at_all(core: Any) -> None:
    bench = Bench(core)
    for name in ("a", "b"):
        await bench.add(name, [7])
    bench.core.mark_lost()
    bench.second.adding = asyncio.Event()
    replacing = asyncio.get_running_loop().create_task(bench.core.replace(bench.second))
    await settle()
    await bench.add("late", [])
    await bench.core.abort_requests_async(["b"])
    bench.second.adding.set()
    await replacing

    assert [one.request_id for one in bench.second.added] == ["a", "late"]


@in_virtual_time
async def test_requests_that_cannot_go_on_fail_at_once_with_their_reason_counted(core: Any) -> None:
    bench = Bench(core)
    hopeless = await bench.add("hopeless", [7], params_structured_outputs=object())
    hopeful = await bench.add("hopeful", [7])
    bench.core.mark_lost()

    assert [type(word) for word in hopeless] == [Died], "and not an ending of the abort's own"
    assert bench.processor.aborted == [(["hopeless"], True)]
    assert hopeful == []

    recovery = await bench.core.replace(bench.second)

    assert (recovery.continued, dict(recovery.failed)) == (1, {"its grammar would start anew": 1})
    assert [one.request_id for one in bench.second.added] == ["hopeful"]
    assert dict((await bench.core.replace(Core())).failed) == {}, "counted once"


@in_virtual_time
async def test_a_request_that_became_hopeless_by_the_dead_engines_last_words_fails_too(core: Any) -> None:
    bench = Bench(core)
    received = await bench.add("r1", [], params_seed=1, params_temperature=1.0)
    bench.core.mark_lost()

    assert received == []

    bench.processor.request_states["r1"].detokenizer.output_token_ids.append(7)
    recovery = await bench.core.replace(bench.second)

    assert [type(word) for word in received] == [Died]
    assert (recovery.continued, bench.second.added) == (0, [])


@in_virtual_time
async def test_the_choices_of_one_request_fail_together_and_once(core: Any) -> None:
    bench = Bench(core)
    parent = SimpleNamespace(request_id="r", child_requests={"r_0", "r_1"})
    shared: list[Any] = []
    for name in ("r_0", "r_1"):
        await bench.add(name, [7], parent, params_presence_penalty=1.0)
        bench.processor.request_states[name].queue = SimpleNamespace(put=shared.append)
    bench.core.mark_lost()
    recovery = await bench.core.replace(bench.second)

    assert [type(word) for word in shared] == [Died]
    assert bench.processor.aborted == [(["r"], True)]
    assert dict(recovery.failed) == {"presence_penalty counts output tokens only": 1}
    assert (bench.second.added, bench.processor.request_states) == ([], {})


@in_virtual_time
async def test_a_request_that_the_output_processor_has_forgotten_is_not_sent_again(core: Any) -> None:
    bench = Bench(core)
    await bench.add("r1", [7])
    del bench.processor.request_states["r1"]
    bench.core.mark_lost()
    recovery = await bench.core.replace(bench.second)

    assert (recovery.continued, bench.second.added) == (0, [])
