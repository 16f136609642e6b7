"""The client that outlives its engine, over stand-ins for vLLM's: importing the real one takes ten seconds. The
end-to-end tests hold it against vLLM's own."""

from __future__ import annotations

import asyncio
import enum
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.time import clock, in_virtual_time, settle
from tests.unit.gateway.engine.vllm.core_client.test_replay import a_request
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


class Process:
    def __init__(self) -> None:
        self.acts: list[str] = []
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.acts.append("kill")

    def join(self, timeout_s: float) -> None:
        self.acts.append(f"join {timeout_s:g}")


class Core:
    """vLLM's client of one engine process."""

    def __init__(self) -> None:
        self.process = Process()
        self.resources = SimpleNamespace(
            engine_dead=False,
            engine_manager=SimpleNamespace(processes=[self.process]),
            # It receives already.
            output_queue_task="a task",
        )
        self.utility_results: dict[int, asyncio.Future[Any]] = {}
        self.outputs: asyncio.Queue[Any] = asyncio.Queue()
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.added: list[Any] = []
        self.aborted: list[str] = []
        self.adding: asyncio.Event | None = None
        self.dead = False
        self.paused_after_s = 0.0
        self.other = "any attribute that AsyncLLM reads"

    async def get_output_async(self) -> Any:
        got = await self.outputs.get()
        if isinstance(got, Exception):
            raise got
        return got

    async def add_request_async(self, request: Any) -> None:
        if self.dead:
            raise Died
        if self.adding is not None:
            await self.adding.wait()
        self.added.append(request)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    async def is_scheduler_paused_async(self) -> bool:
        await asyncio.sleep(self.paused_after_s)
        if self.dead:
            raise Died
        return False

    def shutdown(self, timeout: float) -> None:
        self.process.acts.append(f"shutdown {timeout:g}")


class OutputProcessor:
    """As much of vLLM's as is used: states by internal id."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.aborted: list[tuple[list[str], bool]] = []

    def add(self, name: str, tokens: list[int] | None, parent: Any = None) -> list[Any]:
        """A request of which these tokens have been received; gives its queue. None: one without a detokenizer."""
        received: list[Any] = []
        self.request_states[name] = SimpleNamespace(
            detokenizer=None if tokens is None else SimpleNamespace(output_token_ids=tokens),
            parent_req=parent,
            queue=SimpleNamespace(put=received.append),
        )
        return received

    def abort_requests(self, names: list[str], internal: bool) -> None:
        self.aborted.append((names, internal))
        for name in names:
            state = self.request_states.pop(name, None)
            if state is not None:
                state.queue.put("the abort's own word")
        for name, state in list(self.request_states.items()):
            if state.parent_req is not None and state.parent_req.request_id in names:
                del self.request_states[name]
                state.queue.put("the abort's own word")


class Bench:
    def __init__(self, core: Any) -> None:
        self.first, self.second = Core(), Core()
        self.processor = OutputProcessor()
        self.core = core.RestartableCoreClient(self.first, self.processor, clock())

    async def add(self, name: str, tokens: list[int] | None, parent: Any = None, **changes: Any) -> list[Any]:
        received = self.processor.add(name, tokens, parent)
        await self.core.add_request_async(a_request(request_id=name, **changes))
        return received


def outputs(*finished: tuple[str, str | None]) -> Any:
    return SimpleNamespace(
        outputs=[SimpleNamespace(request_id=name, finish_reason=reason, events=None) for name, reason in finished]
    )


@in_virtual_time
async def test_while_the_engine_lives_everything_passes(core: Any) -> None:
    bench = Bench(core)
    await bench.add("r1", [])
    await asyncio.sleep(5)
    output = outputs(("r1", None))
    bench.first.outputs.put_nowait(output)

    assert await bench.core.get_output_async() is output
    assert bench.core.last_output_s == clock().now()
    assert [request.request_id for request in bench.first.added] == ["r1"]
    assert bench.core.other == bench.first.other
    assert not bench.core.lost.is_set()

    await bench.core.abort_requests_async(["r1"])

    assert bench.first.aborted == ["r1"]


@in_virtual_time
async def test_a_death_is_a_pause_for_the_task_that_waits_for_outputs(core: Any) -> None:
    bench = Bench(core)
    waiting = asyncio.get_running_loop().create_task(bench.core.get_output_async())
    bench.first.outputs.put_nowait(Died())
    await asyncio.sleep(100)

    assert bench.core.lost.is_set()
    assert not waiting.done()
    assert not bench.core.resources.engine_dead, "AsyncLLM would fail every request"

    recovery = await bench.core.replace(bench.second)
    output = outputs()
    bench.second.outputs.put_nowait(output)

    assert await waiting is output
    assert (recovery.continued, dict(recovery.failed)) == (0, {})
    assert not bench.core.lost.is_set()
    assert bench.core.last_output_s == clock().now()


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


@in_virtual_time
async def test_calls_to_a_dead_engine_fail(core: Any) -> None:
    bench = Bench(core)
    loop = asyncio.get_running_loop()
    asked, answered = loop.create_future(), loop.create_future()
    answered.set_result("yes")
    bench.first.utility_results = {1: asked, 2: answered}
    bench.core.mark_lost()
    bench.core.mark_lost()

    assert isinstance(asked.exception(), Died)
    assert answered.result() == "yes"


@in_virtual_time
async def test_when_there_will_be_no_other_engine_everything_fails(core: Any) -> None:
    bench = Bench(core)
    waiting = asyncio.get_running_loop().create_task(bench.core.get_output_async())
    bench.first.outputs.put_nowait(Died())
    await settle()
    bench.core.fail_all()
    with pytest.raises(Died):
        await waiting
    with pytest.raises(Died):
        await bench.core.add_request_async(a_request())
    assert bench.core.resources.engine_dead


@in_virtual_time
async def test_an_old_clients_last_error_is_not_the_new_ones(core: Any) -> None:
    bench = Bench(core)
    waiting = asyncio.get_running_loop().create_task(bench.core.get_output_async())
    await settle()
    bench.core.mark_lost()
    await bench.core.replace(bench.second)
    bench.first.outputs.put_nowait(Died())
    bench.second.outputs.put_nowait(outputs())
    await waiting

    assert not bench.core.lost.is_set()


@in_virtual_time
async def test_an_answer_of_the_busy_loop_is_a_sign_of_life(core: Any) -> None:
    bench = Bench(core)
    await asyncio.sleep(7)

    assert not await bench.core.is_paused()
    assert bench.core.last_output_s == clock().now()

    output_s = clock().now()
    bench.first.paused_after_s = 100
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bench.core.is_paused(), 5)
    bench.first.paused_after_s, bench.first.dead = 0, True
    with pytest.raises(Died):
        await bench.core.is_paused()

    assert bench.core.last_output_s == output_s


@in_virtual_time
async def test_a_send_that_a_closed_socket_ends_is_not_the_end_of_its_request(core: Any) -> None:
    """pyzmq cancels what a socket that is closed has not sent: that of an engine which is not reached any more."""
    bench = Bench(core)
    bench.first.adding = stuck = asyncio.Event()
    sent: list[asyncio.Future[Any]] = []
    stuck.wait = lambda: sent.append(asyncio.get_running_loop().create_future()) or sent[-1]  # type: ignore[assignment,func-returns-value]
    adding = asyncio.get_running_loop().create_task(bench.add("r1", []))
    await settle()
    bench.core.mark_lost()
    sent[0].cancel()
    await adding
    await bench.core.replace(bench.second)

    assert [one.request_id for one in bench.second.added] == ["r1"]


@in_virtual_time
async def test_a_request_that_is_cancelled_while_it_is_sent_leaves_nothing(core: Any) -> None:
    """AsyncLLM has no name for it yet, by which it would abort it."""
    bench = Bench(core)
    bench.first.adding = asyncio.Event()
    adding = asyncio.get_running_loop().create_task(bench.add("r1", []))
    await settle()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    bench.core.mark_lost()
    await bench.core.replace(bench.second)

    assert (bench.processor.request_states, bench.first.aborted, bench.second.added) == ({}, ["r1"], [])


@in_virtual_time
async def test_processes_are_killed_and_waited_for(core: Any) -> None:
    bench = Bench(core)
    bench.core.kill()
    bench.core.free_dead_engine()

    assert bench.first.process.acts == ["kill", "shutdown 0", "kill", "join 10"]

    bench.first.resources.engine_manager = None
    bench.core.kill()


@in_virtual_time
async def test_vllms_own_finding_is_asked_for(core: Any) -> None:
    bench = Bench(core)

    assert not bench.core.has_died()

    bench.first.resources.engine_dead = True

    assert bench.core.has_died()


# Data-parallel engines: vLLM ends all of them when one dies.


@in_virtual_time
async def test_requests_aborted_because_another_engine_died_go_on(core: Any) -> None:
    """vLLM stops the others in good order, and they abort what they have; no client has asked for that."""
    bench = Bench(core)
    received = await bench.add("r1", [7])
    await bench.add("r2", [8])
    await bench.add("mine", [9])
    await bench.core.abort_requests_async(["mine"])
    bench.first.resources.engine_manager.processes.append(other := Process())
    other.alive = False
    bench.first.outputs.put_nowait(outputs(("r1", "abort"), ("r2", "length"), ("mine", "abort"), ("r1", None)))
    output = await bench.core.get_output_async()

    assert [(one.request_id, one.finish_reason) for one in output.outputs] == [
        ("r2", "length"),
        ("mine", "abort"),
        ("r1", None),
    ]
    assert bench.core.lost.is_set()
    assert bench.core.has_died()

    recovery = await bench.core.replace(bench.second)

    assert [request.request_id for request in bench.second.added] == ["r1"]
    assert recovery.continued == 1
    assert received == []


@in_virtual_time
async def test_an_engine_that_gives_up_a_request_by_itself_is_believed(core: Any) -> None:
    bench = Bench(core)
    await bench.add("r1", [7])
    bench.first.outputs.put_nowait(output := outputs(("r1", "abort")))

    assert await bench.core.get_output_async() is output
    assert [one.finish_reason for one in output.outputs] == ["abort"]
    assert not bench.core.lost.is_set()


@in_virtual_time
async def test_of_several_engines_the_silent_one_counts(core: Any) -> None:
    bench = Bench(core)
    bench.first.core_engines = (b"0", b"1")
    await bench.core.replace(bench.first)
    began_s = clock().now()
    for number in (0, 0, 1):
        await asyncio.sleep(5)
        output = outputs()
        output.engine_index = number
        bench.first.outputs.put_nowait(output)
        await bench.core.get_output_async()

        assert bench.core.last_output_s == (began_s if number == 0 else clock().now() - 5)

    assert (bench.core.engine_count, bench.core.silent_engine) == (2, 0)
    await bench.core.is_paused()
    assert bench.core.last_output_s == clock().now()


# Which request the engine has died of.


class Dying(Bench):
    """Engines one after the other; each generates the tokens that the test gives it."""

    def __init__(self, core: Any) -> None:
        super().__init__(core)
        self.engine = self.first

    async def generate(self, *names: str) -> None:
        """A token for each of these."""
        for name in names:
            self.processor.request_states[name].detokenizer.output_token_ids.append(7)
        await asyncio.sleep(0.1)

    async def die(self, *, last: bool = False) -> Any:
        """The engine dies and is replaced."""
        self.core.mark_lost()
        await self.core.find_culprit()
        self.engine = Core()
        recovery = await self.core.replace(self.engine, last=last)
        await settle()
        return recovery

    @property
    def sent(self) -> list[str]:
        """What the engine of the day has been sent."""
        return [request.request_id for request in self.engine.added]


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
