"""Which request an engine has died of: those under suspicion are tried alone."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.time import clock, in_virtual_time
from tests.unit.gateway.engine.vllm.core_client.stub_core import Core, Dying
from tests.unit.gateway.engine.vllm.stub_vllm import beside_stub


@pytest.fixture(autouse=True)
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with beside_stub(monkeypatch, "core_client.restartable") as module:
        yield module


@in_virtual_time
async def test_those_without_a_token_are_tried_alone_when_the_others_go_on(core: Any) -> None:
    bench = Dying(core)
    for name in ("old", "older", "new", "newer"):
        await bench.add(name, [])
    await bench.generate("old", "older")
    recovery = await bench.die()

    assert (bench.sent, recovery.continued) == (["old", "older"], 4)

    await asyncio.sleep(1)
    assert bench.sent == ["old", "older"], "they have no token of this engine yet"
    await bench.generate("old", "older")
    assert bench.sent == ["old", "older", "new"]
    await bench.add("latest", [])
    await bench.generate("old", "older")
    assert bench.sent == ["old", "older", "new"]
    await bench.generate("new")
    assert bench.sent == ["old", "older", "new", "newer"]
    await bench.generate("newer")
    assert bench.sent == ["old", "older", "new", "newer", "latest"]

    await bench.add("after", [])
    assert bench.sent[-1] == "after", "nothing is on trial any more"
    assert bench.core.take_explained_deaths() == 0


@in_virtual_time
async def test_a_request_that_kills_an_engine_while_alone_on_trial_is_not_sent_again(core: Any, caplog: Any) -> None:
    bench = Dying(core)
    await bench.add("old", [])
    received = {name: await bench.add(name, []) for name in ("poison", "innocent")}
    await bench.generate("old")
    await bench.die()
    await bench.generate("old")

    assert bench.sent == ["old", "poison"]

    await bench.add("late", [])
    recovery = await bench.die()

    assert [type(word) for word in received["poison"]] == [core.EngineKilledByRequest]
    assert received["innocent"] == []
    assert bench.core.take_explained_deaths() == 2
    assert bench.core.take_explained_deaths() == 0, "asked once"
    assert (recovery.continued, recovery.expelled) == (2, 1)
    assert "request poison is given up" in caplog.text

    await bench.generate("old")
    await bench.generate("innocent")

    assert bench.sent == ["old", "innocent", "late"]


@in_virtual_time
async def test_a_death_of_which_all_had_tokens_costs_nothing(core: Any) -> None:
    bench = Dying(core)
    for number in range(50):
        await bench.add(str(number), [])
    await bench.generate(*map(str, range(50)))
    await bench.die()

    assert len(bench.sent) == 50

    await bench.add("new", [])

    assert bench.sent[-1] == "new"


@in_virtual_time
async def test_one_that_kills_at_a_token_of_its_own_is_found_by_its_third_engine(core: Any) -> None:
    bench = Dying(core)
    received = [await bench.add(name, [1, 2, 3]) for name in ("a", "poison", "b")]
    assert (await bench.die()).expelled == 0
    assert bench.sent == ["a", "poison", "b"]
    await bench.die()
    assert bench.sent == ["a"], "none has made a token this time"
    await bench.generate("a")
    assert bench.sent == ["a", "poison"]
    assert (await bench.die()).expelled == 1
    assert [len(words) for words in received] == [0, 1, 0]
    assert bench.core.take_explained_deaths() == 3
    bench.core.cancel_trial()


@in_virtual_time
async def test_before_the_last_engine_everything_is_tried(core: Any) -> None:
    bench = Dying(core)
    for name in ("a", "poison"):
        await bench.add(name, [])
    for last in (False, False, True):
        await bench.generate("a", "poison")
        await bench.die(last=last)
    assert bench.sent == ["a"]
    await bench.generate("a")
    assert bench.sent == ["a"], "a token more than it had made before the death"
    await bench.generate("a")
    assert bench.sent == ["a", "poison"]
    await bench.generate("poison")

    assert (await bench.die()).expelled == 1


@in_virtual_time
async def test_on_trial_one_may_leave_or_take_long(core: Any) -> None:
    bench = Dying(core)
    for name in ("left", "long", "new"):
        await bench.add(name, [])
    await bench.die()
    assert bench.sent == ["left"]
    await bench.core.abort_requests_async(["left"])
    await asyncio.sleep(0.1)
    assert bench.sent == ["left", "long"]
    await asyncio.sleep(11)
    assert bench.sent == ["left", "long", "new"], "a long prefill does not hold up the others"
    bench.core.cancel_trial()


@in_virtual_time
async def test_a_request_that_was_not_in_an_engine_is_not_blamed_for_its_death(core: Any) -> None:
    bench = Dying(core)
    received = {name: await bench.add(name, []) for name in ("o1", "o2", "n1", "n2")}
    await bench.generate("o1", "o2")
    for _ in range(2):
        await bench.die()
        assert bench.sent[:2] == ["o1", "o2"][: len(bench.sent)]
    await bench.generate("o1")
    await bench.generate("o2")
    await bench.generate("n1")
    await bench.generate("n2")

    assert bench.sent == ["o1", "o2", "n1", "n2"]
    assert all(words == [] for words in received.values())


@in_virtual_time
async def test_outputs_that_a_dead_engine_has_left_count(core: Any) -> None:
    bench = Dying(core)
    await bench.add("new", [])
    bench.first.outputs_queue = asyncio.Queue()
    bench.first.outputs_queue.put_nowait("a step")
    bench.core.mark_lost()
    judging = asyncio.get_running_loop().create_task(bench.core.find_culprit())
    await asyncio.sleep(0.05)
    await bench.generate("new")
    bench.first.outputs_queue.get_nowait()
    await judging
    bench.engine = Core()
    await bench.core.replace(bench.engine)

    assert bench.sent == ["new"]
    assert bench.core._trial is None


@in_virtual_time
async def test_a_trial_that_fails_does_not_hold_requests_back_forever(core: Any) -> None:
    """Whatever cannot even be sent is what the trial was for."""
    bench = Dying(core)
    for name in ("a", "b", "c"):
        await bench.add(name, [])
    await bench.die()
    bench.engine.add_request_async = None  # type: ignore[method-assign,assignment]
    await bench.generate("a")

    assert bench.core.lost.is_set()
    assert bench.engine.process.acts == ["kill"]

    await bench.die()
    await bench.generate("a")
    await bench.generate("c")

    assert bench.sent == ["a", "c"]


# Several clients of one engine.


@in_virtual_time
async def test_clients_of_one_engine_try_theirs_one_after_the_other(core: Any, tmp_path: Path) -> None:
    shared = importlib.import_module("gateway.engine.vllm.core_client.shared")
    engine_host = SimpleNamespace(
        trial_lock=tmp_path / "trial.lock", pids=[1], attach=lambda _: None, report_unresponsive=lambda: None
    )
    clients = []
    for _ in range(2):
        bench = Dying(core)
        bench.core = shared.SharedCoreClient(bench.first, bench.processor, clock(), engine_host)
        for name in ("old", "new"):
            await bench.add(name, [])
        await bench.generate("old")
        clients.append(bench)
    for bench in clients:
        await bench.die()
    one, two = clients

    assert (one.sent, two.sent) == (["old"], ["old"])

    await one.generate("old")
    await asyncio.sleep(1)

    assert (one.sent, two.sent) == (["old"], ["old"]), "the other one's have no token yet"

    await two.generate("old")
    await asyncio.sleep(0.5)
    (first, second) = (one, two) if len(one.sent) == 2 else (two, one)

    assert (first.sent, second.sent) == (["old", "new"], ["old"]), "one of them is on trial"

    await first.generate("new")
    await asyncio.sleep(0.5)

    assert second.sent == ["old", "new"]

    await second.generate("new")
    await asyncio.sleep(0.5)
