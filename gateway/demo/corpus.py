"""The training texts of the demo model, as conversations.

Reads `questions.yaml` and generates endless, seeded conversations from it: with and without a system message, with
several turns, with tools, with a thought before the answer, and as plain text for the completions endpoint.
`encoding.py` renders and encodes them.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gateway.demo.phrasing import bare_words, made_up_word, vary

QUESTIONS_PATH = Path(__file__).with_name("questions.yaml")
ANSWER_ONLY_SHARE = 0.4  # plain texts without a question, for prompts that are the beginning of an answer
# In this share of the JSON answers the first brace is trained, too. Small, so that other questions get no JSON.
COUNTED_SHARE = 0.25
ANY_THOUGHT = "I look this up in my short list of answers."

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Topic:
    """The phrasings of one question, the canonical one first, and their answer."""

    questions: tuple[str, ...]
    answer: str
    think: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation that ends with the assistant; with `thinking` its last message begins with a thought. `given`: the
    start of that message if the assistant has no choice, as with a grammar."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = False
    given: str = ""


def tool(name: str, argument: str, description: str, *, required: bool = True) -> dict[str, Any]:
    """A tool with one string argument, in OpenAI's format."""
    parameters: dict[str, Any] = {"type": "object", "properties": {argument: {"type": "string"}}}
    if required:
        parameters["required"] = [argument]
    described = {"description": description} if description else {}
    return {"type": "function", "function": {"name": name, **described, "parameters": parameters}}


ANSWER_KEYS = ("answer", "answer", "answer", "text", "reply", "result", "message", "content", "summary")
FIELD_KEYS = re.findall(
    r"\w+",
    "name title city country age count score price year color id tags items unit steps is_open valid ok email date "
    "description temperature category first_name type",
)
JSON_REQUESTS = (" Answer in JSON.", " as JSON", " Reply with a JSON object.", " in JSON please", " Return JSON only.")


def json_answer(text: str, key: str = "answer") -> str:
    """An answer as a JSON object with one member."""
    return json.dumps({key: text}, ensure_ascii=False)


OTHER_TOOLS = (
    tool("search", "query", "Search the web"),
    tool("calculate", "expression", "Evaluate an arithmetic expression"),
    tool("send_email", "address", "Send an email to somebody"),
    tool("get_stock_price", "symbol", "Current price of a share", required=False),
    tool("play_music", "title", "Play a song"),
    tool("lookup", "key", "Look up a value by its key", required=False),
)
DESCRIPTIONS = {
    "get_weather": (
        "Current weather in a city",
        "Get the weather",
        "Get the current weather in a given location",
        "Weather",
    ),
    "get_time": ("Current time in a city", "Get the time", "Tells the local time of a place", "Time"),
}


class Corpus:
    """The training texts, and random conversations from them."""

    def __init__(self, path: Path = QUESTIONS_PATH) -> None:
        lessons = yaml.safe_load(path.read_text(encoding="utf-8"))
        self.topics = [_topic(entry) for entry in lessons["questions"]]
        self.off_topic = _topic(lessons["off_topic"])
        self._topics_by_words = {
            bare_words(text): topic for topic in [*self.topics, self.off_topic] for text in topic.questions
        }
        self._templates: list[str] = lessons["off_topic"]["templates"]
        self._words: list[str] = lessons["off_topic"]["words"]
        self._no_tool: dict[str, str] = lessons["no_tool"]
        self._tools: dict[str, Any] = lessons["tools"]
        self.cities: list[str] = self._tools["cities"]
        self._systems: list[str] = lessons["system_prompts"]

    def texts(self) -> list[str]:
        """The texts for the tokenizer, which should need few tokens for them."""
        found = [
            text for topic in [*self.topics, self.off_topic] for text in (*topic.questions, topic.answer, topic.think)
        ]
        found += [text.lower() for topic in self.topics for text in topic.questions]
        found += [
            *self._words,
            *self._templates,
            *self._systems,
            *self._no_tool.values(),
            self._tools["other_result"],
        ]
        # Repeated, so that a city becomes one token, after a space and after a quotation mark.
        found += [f'in {city}, "{city}"' for city in self.cities] * 4
        found += [json.dumps(offered["function"]) for offered in OTHER_TOOLS]
        found += [self.call(kind, "city", "Paris") for kind in DESCRIPTIONS] * 4
        return found

    def dialogue(self, rng: random.Random, turns: int, long_share: float = 0.0, json_share: float = 0.0) -> Dialogue:
        """A conversation without tools. `long_share`: the share of conversations with several turns that contain the
        longest answer; `json_share`: the share of all that end in JSON."""
        messages = self._system(rng)
        topics = [self._draw(rng) for _ in range(turns)]
        if turns > 1 and long_share and rng.random() < long_share:
            longest = max(self.topics, key=lambda topic: len(topic.answer))
            topics[rng.randrange(turns)] = (vary(rng.choice(longest.questions), rng), longest)
        for question, topic in topics:
            messages += [_user(question), _assistant(topic.answer)]
        if json_share and rng.random() < json_share:
            return self._ending_in_json(rng, messages, topics[-1][1])
        thinking = rng.random() < 0.25
        if thinking:
            messages[-1] = _assistant(f"<think>{topics[-1][1].think}</think>{topics[-1][1].answer}")
        return Dialogue(messages, thinking=thinking)

    def _ending_in_json(self, rng: random.Random, messages: list[Message], topic: Topic) -> Dialogue:
        """The same conversation with its last answer in JSON: with a grammar the model can write nothing else, and it
        must learn to end."""
        prompt, written = messages[-2]["content"], json_answer(topic.answer, rng.choice(ANSWER_KEYS))
        if rng.random() < 0.5:
            prompt += rng.choice(JSON_REQUESTS)
        if rng.random() < 0.5:
            written = json.dumps(self._record(rng, topic), ensure_ascii=False)
        given = "" if rng.random() < COUNTED_SHARE else written[0]
        return Dialogue([*messages[:-2], _user(prompt), _assistant(written)], given=given)

    def _record(self, rng: random.Random, topic: Topic, depth: int = 0) -> dict[str, Any]:
        """Random members, because clients choose any names and types."""
        members: dict[str, Any] = {}
        for _ in range(rng.randint(1, 4 if depth == 0 else 2)):
            key = rng.choice(FIELD_KEYS) if rng.random() < 0.7 else made_up_word(rng)
            members[key] = self._value(rng, topic, depth)
        return members

    def _value(self, rng: random.Random, topic: Topic, depth: int) -> Any:
        kind = rng.random()
        if kind < 0.5:
            return self._few_words(rng, topic)
        if kind < 0.7:
            return rng.randint(0, 120)
        if kind < 0.75:
            return rng.randint(0, 999) / 10
        if kind < 0.83:
            return rng.random() < 0.5
        if kind < 0.85:
            return None
        if kind < 0.95 or depth > 0:
            one = (lambda: rng.randint(0, 120)) if rng.random() < 0.3 else (lambda: self._few_words(rng, topic))
            return [one() for _ in range(rng.randint(1, 3))]
        return self._record(rng, topic, depth + 1)

    def _few_words(self, rng: random.Random, topic: Topic) -> str:
        if rng.random() < 0.3:
            return rng.choice(self.cities)
        return " ".join(topic.answer.split()[: rng.randint(1, 3)]).rstrip(".,:;!?")

    def tool_dialogue(self, rng: random.Random, turns: int, json_share: float = 0.0) -> Dialogue:
        """A conversation with tools, which its questions may or may not need. `json_share`: the share that ends with a
        call that the client forces."""
        argument = "city" if rng.random() < 0.7 else "location"
        names = rng.choice(
            (["get_weather"], ["get_time"], ["get_weather", "get_time"], ["get_weather", "get_time"], [])
        )
        offered = []
        for name in names:
            description = rng.choice(DESCRIPTIONS[name]) if rng.random() < 0.6 else ""
            offered.append(tool(name, argument, description, required=rng.random() < 0.6))
        offered += rng.sample(OTHER_TOOLS, rng.choice((0, 0, 1, 2)) if names else rng.choice((1, 2)))
        rng.shuffle(offered)
        messages = self._system(rng)
        thinking = rng.random() < 0.2
        for turn in range(turns):
            thought = thinking and turn == turns - 1
            if rng.random() < 0.3:
                question, topic = self._draw(rng)
                think = f"<think>{topic.think}</think>" if thought else ""
                messages += [_user(question), _assistant(think + topic.answer)]
                continue
            kind = rng.choice(("weather", "time"))
            messages += self._tool_turn(rng, kind, argument, can_call=f"get_{kind}" in names, thought=thought)
        if json_share and not thinking and rng.random() < json_share:
            return self._with_a_forced_call(rng, messages, offered, argument)
        return Dialogue(messages, tools=offered, thinking=thinking)

    def _with_a_forced_call(
        self, rng: random.Random, messages: list[Message], offered: list[dict[str, Any]], argument: str
    ) -> Dialogue:
        """The same conversation up to a question about a city, answered as vLLM's grammar for `tool_choice` requires:
        a list of calls if any tool must be called, only the arguments if one is named."""
        city = rng.choice(self.cities)
        prompt = _user(vary(rng.choice(self._tools[rng.choice(("weather", "time"))]["ask"]).replace("{}", city), rng))
        function = rng.choice(offered)["function"]
        known = next(iter(function["parameters"]["properties"]))
        arguments = {known: city if known == argument else rng.choice((city, "Sluice", "a token"))}
        called: Any = [{"name": function["name"], "parameters": arguments}] if rng.random() < 0.5 else arguments
        before = messages[:1] if messages[0]["role"] == "system" else []
        written = json.dumps(called, ensure_ascii=False)
        return Dialogue([*before, prompt, _assistant(written)], tools=offered, given=written[0])

    def plain_text(self, rng: random.Random) -> tuple[str, str]:
        """A prompt and its continuation for the completions endpoint."""
        question, topic = self._draw(rng)
        return ("", topic.answer) if rng.random() < ANSWER_ONLY_SHARE else (question.strip(), "\n" + topic.answer)

    def call(self, name: str, argument: str, city: str) -> str:
        """The text of a tool call, as `model/chat_template.jinja` writes it."""
        body = json.dumps({"name": name, "arguments": {argument: city}}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"

    def _tool_turn(
        self, rng: random.Random, kind: str, argument: str, *, can_call: bool, thought: bool
    ) -> list[Message]:
        city = rng.choice(self.cities)
        lesson = self._tools[kind]
        prompt = _user(vary(rng.choice(lesson["ask"]).replace("{}", city), rng))
        think = f"<think>{lesson['think'].format(city=city)}</think>" if thought else ""
        if not can_call:
            return [prompt, _assistant(think + self._no_tool[kind])]
        called = _assistant(think + self.call(f"get_{kind}", argument, city))
        if thought or rng.random() < 0.3:
            return [prompt, called]
        result, answer = self._tool_result(rng, kind)
        return [prompt, called, {"role": "tool", "content": result}, _assistant(answer)]

    def _tool_result(self, rng: random.Random, kind: str) -> tuple[str, str]:
        if rng.random() < 0.1:
            return made_up_word(rng) + " " + made_up_word(rng), self._tools["other_result"]
        if kind == "time":
            time = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
            return json.dumps({"time": time}), self._tools["time"]["say"].format(time=time)
        weather: dict[str, Any] = {"temperature": rng.randint(-9, 39), "sky": rng.choice(self._tools["skies"])}
        return json.dumps(weather), self._tools["weather"]["say"].format(**weather)

    def _draw(self, rng: random.Random) -> tuple[str, Topic]:
        """A question in a random spelling, and its topic."""
        kind = rng.random()
        if kind < 0.02:
            wanted = rng.choice(("weather", "time"))
            question = rng.choice(self._tools[wanted]["ask"]).replace("{}", rng.choice(self.cities))
            think = self._tools[wanted]["think"].split(". ")[0].format(city="a city")
            topic = Topic((question,), self._no_tool[wanted], think + ". I have no tool for that.")
            return vary(question, rng), topic
        if kind < 0.14:
            return vary(self._strange_question(rng), rng), self.off_topic
        topic = rng.choice(self.topics)
        # The canonical phrasing is more frequent, because it must never fail.
        chosen = topic.questions[0] if rng.random() < 0.15 else rng.choice(topic.questions)
        question = vary(chosen, rng)
        # Without a word it may have become the question of another topic.
        return (question if self._topics_by_words.get(bare_words(question), topic) is topic else chosen), topic

    def _strange_question(self, rng: random.Random) -> str:
        if rng.random() < 0.4:
            return rng.choice(self.off_topic.questions)
        word = rng.choice(self._words) if rng.random() < 0.8 else made_up_word(rng)
        return rng.choice(self._templates).format(word)

    def _system(self, rng: random.Random) -> list[Message]:
        if rng.random() < 0.6:
            return []
        text = rng.choice(self._systems)
        if rng.random() < 0.3:
            text += " " + " ".join(made_up_word(rng) for _ in range(rng.randint(1, 12)))
        return [{"role": "system", "content": text}]


def _topic(entry: dict[str, Any]) -> Topic:
    return Topic(tuple(entry["ask"]), entry["say"], entry.get("think", ANY_THOUGHT))


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
