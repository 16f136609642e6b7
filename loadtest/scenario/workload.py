"""What is asked: from a number and a seed to the requests of one conversation. Pure.

Everything about arrival `number` comes from a random generator of its own, so it is the same whichever worker sends it,
and whatever other arrivals do. The history of a conversation is what the server really answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any, Protocol, TypeVar

import orjson

from gateway.engine import deterministic_tokens
from loadtest.measure.record import Manner
from loadtest.scenario import prompt_text
from loadtest.scenario.behaviours import Behaviour, Cancel, Resume, Slow, Stall
from loadtest.scenario.model import Scenario, Tenant, Workload
from loadtest.scenario.traces import Arrival

__all__ = ["Ask", "Conversation", "Plan", "Served", "Work"]

# Ids that are plain text for the demo model, and exist in any other.
_FIRST_ID = 300


@dataclass(frozen=True, slots=True)
class Served:
    """What must be known of the server before it can be asked."""

    model: str
    # Fields that only vLLM's servers know are left out otherwise.
    is_vllm: bool = False
    tokens_per_word: float = 1.0
    # The longest prompt and answer together, if the server tells.
    context: int | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """How the client will behave, all chances drawn. `after_events` counts events with content for a cancel, and all
    events for those that stop or come back."""

    manner: Manner = Manner.PLAIN
    leave_after_s: float | None = None
    after_events: int | None = None
    bytes_per_s: float | None = None
    pause_s: float = 0.0
    times: int = 0
    away_s: float = 0.0
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to be sent."""

    number: int
    turn: int
    workload: str
    tenant: str
    model: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    stream: bool
    choices: int
    max_tokens: int
    plan: Plan
    # How its tokens can be counted: by usage in every event, by their ids, or only by the usage at the end.
    by_usage: bool
    by_ids: bool
    # Compare with the synthetic engine: what the prompt began with and its length, if the client knows them.
    synthetic: bool
    prompt_ids: tuple[int, int] | None
    keeps_text: bool


class _Weighted(Protocol):
    @property
    def share(self) -> float: ...


_W = TypeVar("_W", bound=_Weighted)


def _one_of(chance: Random, options: Sequence[_W]) -> _W:
    if len(options) == 1:
        return options[0]
    return chance.choices(options, [option.share for option in options])[0]


class Work:
    """All that a scenario asks of one server."""

    def __init__(self, scenario: Scenario, served: Served, keys: Mapping[str, str]) -> None:
        """`keys`: by the tenant's name."""
        self._scenario = scenario
        self._served = served
        self._keys = keys
        self._block = lru_cache(maxsize=4096)(prompt_text.block)
        self._prefixes: dict[tuple[str, int], str] = {}

    def conversation(self, arrival: Arrival, number: int) -> Conversation:
        """What arrival `number` begins."""
        chance = Random(f"{self._scenario.seed}/{number}")
        workload = _one_of(chance, self._scenario.workloads)
        tenant = _one_of(chance, self._scenario.tenants)
        return Conversation(self, arrival, number, chance, workload, tenant)

    def is_full(self, used: int, more: int) -> bool:
        """Whether `more` tokens, with some room for chance, do not fit behind `used`."""
        return self._served.context is not None and used + 2 * more > self._served.context

    def ask(self, talk: Conversation, turn: int, *, last: bool) -> Ask:
        """The request of one turn."""
        workload, chance = talk.workload, talk.chance
        model = _one_of(chance, workload.models).name if workload.models else self._served.model
        plan = _plan(chance, workload.behaviours)
        recorded = talk.arrival.output_tokens
        max_tokens = recorded if recorded is not None else workload.output_tokens.count(chance)
        body: dict[str, Any] = {"model": model, "stream": workload.stream, "max_tokens": max_tokens}
        prompt_ids = self._add_prompt(body, talk)
        synthetic = self._scenario.verify == "synthetic"
        by_usage = workload.stream and self._served.is_vllm and self._scenario.per_token_usage
        if workload.stream:
            body["stream_options"] = {"include_usage": True}
            if by_usage:
                body["stream_options"]["continuous_usage_stats"] = True
        if synthetic:
            body["return_token_ids"] = True
        if workload.fixed_length and self._served.is_vllm:
            body["ignore_eos"] = True
        body |= workload.body
        key = self._keys.get(talk.tenant.name)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if plan.manner is Manner.RESUME:
            headers["X-Stream-Resumable"] = f"{plan.grace_s:g}"
        return Ask(
            number=talk.number,
            turn=turn,
            workload=workload.name,
            tenant=talk.tenant.name,
            model=model,
            path="/v1/chat/completions" if workload.endpoint == "chat" else "/v1/completions",
            body=orjson.dumps(body),
            headers=headers,
            stream=bool(body["stream"]),
            choices=int(body.get("n") or 1),
            max_tokens=max_tokens,
            plan=plan,
            by_usage=by_usage,
            by_ids=bool(body.get("return_token_ids")),
            synthetic=synthetic,
            prompt_ids=prompt_ids,
            keeps_text=not last,
        )

    def _add_prompt(self, body: dict[str, Any], talk: Conversation) -> tuple[int, int] | None:
        workload, chance, arrival = talk.workload, talk.chance, talk.arrival
        length = arrival.prompt_tokens or workload.prompt_tokens.count(chance)
        if workload.prompt == "token_ids":
            ids = chance.choices(range(_FIRST_ID, deterministic_tokens.LARGEST), k=length)
            body["prompt"] = ids
            return ids[0], length
        per_word = self._served.tokens_per_word
        if arrival.blocks:
            spelled = " ".join(self._block(block, per_word) for block in arrival.blocks).split(" ")
            said = " ".join(spelled[: max(1, round(length / per_word))])
        else:
            said = prompt_text.text(chance, length, per_word)
        prefix = self._prefix(talk)
        if workload.endpoint == "completions":
            body["prompt"] = f"{prefix} {said}" if prefix else said
            return None
        if not talk.messages and prefix:
            talk.messages.append({"role": "system", "content": prefix})
        talk.messages.append({"role": "user", "content": said})
        body["messages"] = talk.messages
        return None

    def _prefix(self, talk: Conversation) -> str:
        wanted = talk.workload.prefix
        if wanted is None:
            return ""
        key = (talk.workload.name, talk.prefix_group)
        if key not in self._prefixes:
            chance = Random(f"{self._scenario.seed}/prefix/{key}")
            self._prefixes[key] = prompt_text.text(chance, wanted.tokens.count(chance), self._served.tokens_per_word)
        return self._prefixes[key]


@dataclass(slots=True, eq=False)
class Conversation:
    """The turns of one arrival."""

    _work: Work
    arrival: Arrival
    number: int
    chance: Random
    workload: Workload
    tenant: Tenant
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: int = 1
    prefix_group: int = 0
    _turn: int = 0
    _used: int = 0

    def __post_init__(self) -> None:
        self.turns = self.workload.turns.count(self.chance)
        if self.workload.prefix is not None:
            self.prefix_group = self.chance.randrange(self.workload.prefix.groups)

    def next(self, answer: str | None = None, used: int = 0) -> Ask | None:
        """The next request; `answer` is what the last one brought, and `used` are its tokens with those of its prompt.
        None if all has been said, or if the context is so full that another turn like the last would not fit."""
        if self._turn >= self.turns or self._work.is_full(used, used - self._used):
            return None
        self._used = used
        if self._turn:
            # Chat templates refuse two questions in a row; an answer may have been empty.
            self.messages.append({"role": "assistant", "content": answer or "..."})
        self._turn += 1
        return self._work.ask(self, self._turn, last=self._turn == self.turns)

    def think_s(self) -> float:
        """How long the user thinks before the next turn."""
        return self.workload.think_s.draw(self.chance)


def _plan(chance: Random, behaviours: Sequence[Behaviour]) -> Plan:
    left = chance.random()
    for one in behaviours:
        left -= one.share
        if left < 0:
            return _drawn(chance, one)
    return Plan()


def _drawn(chance: Random, one: Behaviour) -> Plan:
    match one:
        case Cancel():
            seconds = one.leaves_after_s
            return Plan(
                Manner.CANCEL,
                leave_after_s=seconds.draw(chance) if seconds is not None else None,
                after_events=one.after_tokens.count(chance) if one.after_tokens is not None else None,
            )
        case Slow():
            return Plan(Manner.SLOW, bytes_per_s=one.bytes_per_s)
        case Stall():
            return Plan(Manner.STALL, after_events=one.after_events.count(chance), pause_s=one.pause_s.draw(chance))
        case Resume():
            return Plan(
                Manner.RESUME,
                after_events=one.after_events.count(chance),
                times=one.times,
                away_s=one.away_s.draw(chance),
                grace_s=one.grace_s,
            )
