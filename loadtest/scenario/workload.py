"""Generates requests: from an arrival's number and a seed to the requests of one conversation. Pure.

Arrival `number` has a random generator of its own, so that its requests are the same on every worker and independent of
other arrivals. The history of a conversation consists of the server's real answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any, Protocol, TypeVar

import orjson

from gateway.engine import deterministic_tokens
from loadtest.measure.record import ReadMode, Record
from loadtest.scenario import prompt_text
from loadtest.scenario.behaviours import Behaviour, Cancel, Resume, Slow, Stall
from loadtest.scenario.model import Scenario, Tenant, Workload
from loadtest.scenario.traces import Arrival

# Token ids that are plain text for the demo model, and exist in any other.
_SMALLEST_TOKEN_ID = 300


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The properties of the server on which requests depend."""

    model: str
    # Fields that only vLLM's servers accept are left out for others.
    is_vllm: bool = False
    tokens_per_word: float = 1.0
    # The longest prompt and answer together; None if the server does not report it.
    context: int | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """The client's behaviour, all random values drawn. `after_events` counts events with content for a cancel, and all
    events for a stall or a resumption."""

    read_mode: ReadMode = ReadMode.PLAIN
    abort_after_s: float | None = None
    after_events: int | None = None
    bytes_per_s: float | None = None
    pause_s: float = 0.0
    times: int = 0
    away_s: float = 0.0
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PreparedRequest:
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
    read_plan: ReadPlan
    # How its tokens can be counted: by the usage in every event or by their ids; without either, by the usage at the
    # end.
    counts_by_usage: bool
    counts_by_ids: bool
    # Whether tokens are compared with the synthetic engine's; the first id and the length of the prompt, if known.
    is_verified: bool
    prompt_start: tuple[int, int] | None
    keeps_text: bool

    def new_record(self, intended_ns: int) -> Record:
        labels = (self.number, self.turn, self.workload, self.tenant, self.model)
        return Record(*labels, self.stream, self.read_plan.read_mode, intended_ns)


class _Weighted(Protocol):
    @property
    def share(self) -> float: ...


_W = TypeVar("_W", bound=_Weighted)


def _weighted_choice(rng: Random, options: Sequence[_W]) -> _W:
    if len(options) == 1:
        return options[0]
    return rng.choices(options, [option.share for option in options])[0]


class RequestFactory:
    """The requests of one scenario for one server."""

    def __init__(self, scenario: Scenario, server_info: ServerInfo, keys: Mapping[str, str]) -> None:
        """`keys`: API keys by the tenant's name."""
        self._scenario = scenario
        self._server_info = server_info
        self._keys = keys
        self._block = lru_cache(maxsize=4096)(prompt_text.make_block)
        self._prefixes: dict[tuple[str, int], str] = {}

    def conversation(self, arrival: Arrival, number: int) -> Conversation:
        """The conversation that arrival `number` begins."""
        rng = Random(f"{self._scenario.seed}/{number}")
        workload = _weighted_choice(rng, self._scenario.workloads)
        tenant = _weighted_choice(rng, self._scenario.tenants)
        return Conversation(self, arrival, number, rng, workload, tenant)

    def exceeds_context(self, used: int, more: int) -> bool:
        """Whether `more` tokens, with a margin for variation, do not fit behind `used`."""
        return self._server_info.context is not None and used + 2 * more > self._server_info.context

    def prepare(self, conversation: Conversation, turn: int, *, last: bool) -> PreparedRequest:
        """The request of one turn."""
        workload, rng = conversation.workload, conversation.rng
        model = _weighted_choice(rng, workload.models).name if workload.models else self._server_info.model
        plan = _choose_read_plan(rng, workload.behaviours)
        recorded = conversation.arrival.output_tokens
        max_tokens = recorded if recorded is not None else workload.output_tokens.sample_count(rng)
        body: dict[str, Any] = {"model": model, "stream": workload.stream, "max_tokens": max_tokens}
        prompt_ids = self._add_prompt(body, conversation)
        synthetic = self._scenario.verify == "synthetic"
        by_usage = workload.stream and self._server_info.is_vllm and self._scenario.per_token_usage
        if workload.stream:
            body["stream_options"] = {"include_usage": True}
            if by_usage:
                body["stream_options"]["continuous_usage_stats"] = True
        if synthetic:
            body["return_token_ids"] = True
        if workload.fixed_length and self._server_info.is_vllm:
            body["ignore_eos"] = True
        body |= workload.body
        key = self._keys.get(conversation.tenant.name)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if plan.read_mode is ReadMode.RESUME:
            headers["X-Stream-Resumable"] = f"{plan.grace_s:g}"
        return PreparedRequest(
            number=conversation.number,
            turn=turn,
            workload=workload.name,
            tenant=conversation.tenant.name,
            model=model,
            path="/v1/chat/completions" if workload.endpoint == "chat" else "/v1/completions",
            body=orjson.dumps(body),
            headers=headers,
            stream=bool(body["stream"]),
            choices=int(body.get("n") or 1),
            max_tokens=max_tokens,
            read_plan=plan,
            counts_by_usage=by_usage,
            counts_by_ids=bool(body.get("return_token_ids")),
            is_verified=synthetic,
            prompt_start=prompt_ids,
            keeps_text=not last,
        )

    def _add_prompt(self, body: dict[str, Any], conversation: Conversation) -> tuple[int, int] | None:
        workload, rng, arrival = conversation.workload, conversation.rng, conversation.arrival
        length = arrival.prompt_tokens or workload.prompt_tokens.sample_count(rng)
        if workload.prompt == "token_ids":
            ids = rng.choices(range(_SMALLEST_TOKEN_ID, deterministic_tokens.LARGEST), k=length)
            body["prompt"] = ids
            return ids[0], length
        per_word = self._server_info.tokens_per_word
        if arrival.blocks:
            words = " ".join(self._block(block, per_word) for block in arrival.blocks).split(" ")
            text = " ".join(words[: max(1, round(length / per_word))])
        else:
            text = prompt_text.make_text(rng, length, per_word)
        prefix = self._prefix(conversation)
        if workload.endpoint == "completions":
            body["prompt"] = f"{prefix} {text}" if prefix else text
            return None
        if not conversation.messages and prefix:
            conversation.messages.append({"role": "system", "content": prefix})
        conversation.messages.append({"role": "user", "content": text})
        body["messages"] = conversation.messages
        return None

    def _prefix(self, conversation: Conversation) -> str:
        wanted = conversation.workload.prefix
        if wanted is None:
            return ""
        key = (conversation.workload.name, conversation.prefix_group)
        if key not in self._prefixes:
            rng = Random(f"{self._scenario.seed}/prefix/{key}")
            self._prefixes[key] = prompt_text.make_text(
                rng, wanted.tokens.sample_count(rng), self._server_info.tokens_per_word
            )
        return self._prefixes[key]


@dataclass(slots=True, eq=False)
class Conversation:
    """The turns of one arrival."""

    _factory: RequestFactory
    arrival: Arrival
    number: int
    rng: Random
    workload: Workload
    tenant: Tenant
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: int = 1
    prefix_group: int = 0
    _turn: int = 0
    _used: int = 0

    def __post_init__(self) -> None:
        self.turns = self.workload.turns.sample_count(self.rng)
        if self.workload.prefix is not None:
            self.prefix_group = self.rng.randrange(self.workload.prefix.groups)

    def next_request(self, answer: str | None = None, used: int = 0) -> PreparedRequest | None:
        """The next request. `answer` is the text of the last answer, `used` its tokens with those of its prompt. None
        if this was the last turn, or if another turn like it would not fit into the context."""
        if self._turn >= self.turns or self._factory.exceeds_context(used, used - self._used):
            return None
        self._used = used
        if self._turn:
            # Chat templates refuse two user messages in a row; an answer may have been empty.
            self.messages.append({"role": "assistant", "content": answer or "..."})
        self._turn += 1
        return self._factory.prepare(self, self._turn, last=self._turn == self.turns)

    def think_s(self) -> float:
        """Think time before the next turn."""
        return self.workload.think_s.sample(self.rng)


def _choose_read_plan(rng: Random, behaviours: Sequence[Behaviour]) -> ReadPlan:
    remaining = rng.random()
    for behaviour in behaviours:
        remaining -= behaviour.share
        if remaining < 0:
            return _sample_read_plan(rng, behaviour)
    return ReadPlan()


def _sample_read_plan(rng: Random, behaviour: Behaviour) -> ReadPlan:
    match behaviour:
        case Cancel():
            seconds = behaviour.cancel_after_s
            return ReadPlan(
                ReadMode.CANCEL,
                abort_after_s=seconds.sample(rng) if seconds is not None else None,
                after_events=behaviour.after_tokens.sample_count(rng) if behaviour.after_tokens is not None else None,
            )
        case Slow():
            return ReadPlan(ReadMode.SLOW, bytes_per_s=behaviour.bytes_per_s)
        case Stall():
            return ReadPlan(
                ReadMode.STALL,
                after_events=behaviour.after_events.sample_count(rng),
                pause_s=behaviour.pause_s.sample(rng),
            )
        case Resume():
            return ReadPlan(
                ReadMode.RESUME,
                after_events=behaviour.after_events.sample_count(rng),
                times=behaviour.times,
                away_s=behaviour.away_s.sample(rng),
                grace_s=behaviour.grace_s,
            )
