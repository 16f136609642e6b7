"""Bodies that would hold the event loop or cost far more than their size, with the right answer to each.

`python -m tests.support.hostile_bodies [--port PORT] [NAME...]` sends them one by one, to a synthetic server of its own
unless a port is given, with a probe of `/livez` beside them, and prints for each: status, seconds, the longest wait.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.livez_probe import LivezProbe
from tests.support.server import ASK, CHAT, MODEL, Server, poll

TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
FULL_BYTES = 16 * 2**20 - 1024
"""Nearly as much as a server takes by default."""
OK, REFUSED = 200, 400


@dataclass(frozen=True, slots=True)
class Hostile:
    """One body: where it goes, how it is made, and the status that is right."""

    path: str
    make: Callable[[], bytes]
    status: int


def _json(**fields: Any) -> Callable[[], bytes]:
    return lambda: json.dumps({"model": MODEL, **fields}).encode()


def _made(fields: Callable[[], dict[str, Any]]) -> Callable[[], bytes]:
    """As `_json`, for fields that are made when they are needed."""
    return lambda: json.dumps({"model": MODEL, **fields()}).encode()


def _list(field: str, item: str, count: int, **more: Any) -> Callable[[], bytes]:
    """A body whose field is a list of one item, repeated; `item` is JSON."""
    head = json.dumps({"model": MODEL, **more})[:-1]

    def make() -> bytes:
        return f'{head},"{field}":[{",".join([item] * count)}]}}'.encode()

    return make


def _full(field: str, item: str, **more: Any) -> Callable[[], bytes]:
    return _list(field, item, FULL_BYTES // (len(item) + 1), **more)


def _parts(field: str, part: str, count: int, **more: Any) -> Callable[[], bytes]:
    """A body with one user message of this many content parts."""
    return _list(field, f'{{"role":"user","content":[{",".join([part] * count)}]}}', 1, **more)


def _text(count: int, piece: str) -> str:
    return piece * (count // len(piece))


TOOL = (
    '{"type":"function","function":{"name":"f","description":"does","parameters":{"type":"object","properties":'
    '{"a":{"type":"string"},"b":{"type":"integer"}}}}}'
)
CALL = (
    '{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function",'
    '"function":{"name":"f","arguments":"{}"}}]}'
)
RESULT = '{"role":"tool","tool_call_id":"a","content":"x"}'
USER = '{"role":"user","content":"hi"}'
FEW = {"max_tokens": 4}
_SMALL: dict[str, tuple[str, Callable[[], bytes], int]] = {
    # Wrong in every item.
    "chat, 1,000 empty messages": (CHAT, _list("messages", "{}", 1_000), REFUSED),
    "chat, 8,000 empty messages": (CHAT, _list("messages", "{}", 8_000), REFUSED),
    "chat, 60,000 empty messages": (CHAT, _list("messages", "{}", 60_000), REFUSED),
    "chat, 4,000 numbers for messages": (CHAT, _list("messages", "1", 4_000), REFUSED),
    "chat, 4,000 wrong tools": (CHAT, _list("tools", "{}", 4_000, messages=ASK), REFUSED),
    "chat, 4,000 empty parts": (CHAT, _parts("messages", "{}", 4_000), REFUSED),
    "responses, 1,000 empty items": (RESPONSES, _list("input", "{}", 1_000), REFUSED),
    "responses, 12,000 empty items": (RESPONSES, _list("input", "{}", 12_000), REFUSED),
    "responses, 2,000 items of no type": (RESPONSES, _list("input", '{"type":"x"}', 2_000), REFUSED),
    "responses, 1,000 wrong tools": (RESPONSES, _list("tools", "{}", 1_000, input="hi"), REFUSED),
    "responses, 2,000 wrong parts": (RESPONSES, _parts("input", "{}", 2_000), REFUSED),
    "messages, 12,000 empty messages": (MESSAGES, _list("messages", "{}", 12_000, **FEW), REFUSED),
    "messages, 4,000 empty parts": (MESSAGES, _parts("messages", "{}", 4_000, **FEW), REFUSED),
    "count_tokens, 12,000 empty messages": (COUNT, _list("messages", "{}", 12_000), REFUSED),
    "tokenize, 12,000 empty messages": (TOKENIZE, _list("messages", "{}", 12_000), REFUSED),
    "completions, 100,000 prompts": (TEXT, _list("prompt", '"a"', 100_000), REFUSED),
    "completions, 100,000 token lists": (TEXT, _list("prompt", "[5]", 100_000), REFUSED),
    "invocations, 4,000 empty messages": ("/invocations", _list("messages", "{}", 4_000), REFUSED),
    "invocations, 4,000 empty items": ("/invocations", _list("input", "{}", 4_000), REFUSED),
    # Values that an error may echo.
    "chat, model name of 1 MB": (CHAT, _json(model="m" * 10**6, messages=ASK), 404),
    "responses, model name of 1 MB": (RESPONSES, _json(model="m" * 10**6, input="hi"), 404),
    "messages, model name of 1 MB": (MESSAGES, _json(model="m" * 10**6, messages=ASK, **FEW), 404),
    "chat, stop_token_ids of a million": (CHAT, _list("stop_token_ids", "99999999", 10**6, messages=ASK), REFUSED),
    "chat, allowed_token_ids of a million": (
        CHAT,
        _list("allowed_token_ids", "99999999", 10**6, messages=ASK),
        REFUSED,
    ),
    "chat, logit_bias of 100,000": (
        CHAT,
        _made(lambda: {"messages": ASK, "logit_bias": {str(10**6 + n): 1 for n in range(100_000)}}),
        REFUSED,
    ),
    "chat, bad_words of 100,000": (CHAT, _list("bad_words", '"word"', 100_000, messages=ASK), REFUSED),
    "chat, 100,000 stop strings": (CHAT, _list("stop", '"word"', 100_000, messages=ASK), REFUSED),
    "chat, seed past 64 bits": (CHAT, _json(messages=ASK, seed=2**70), REFUSED),
    "chat, 100,000 unknown fields": (
        CHAT,
        _made(lambda: {"messages": ASK, **{f"field{n}": 1 for n in range(100_000)}}),
        REFUSED,
    ),
    # Right, and large.
    "chat, 2,000 messages": (CHAT, _list("messages", USER, 2_000, **FEW), OK),
    "chat, 300,000 messages": (CHAT, _list("messages", USER, 300_000, **FEW), REFUSED),
    "responses, 2,000 items": (RESPONSES, _list("input", USER, 2_000, max_output_tokens=4), OK),
    "messages, 2,000 messages": (MESSAGES, _list("messages", USER, 2_000, **FEW), OK),
    "count_tokens, 2,000 messages": (COUNT, _list("messages", USER, 2_000), OK),
    "tokenize, 2,000 messages": (TOKENIZE, _list("messages", USER, 2_000), OK),
    "invocations, 2,000 messages": ("/invocations", _list("messages", USER, 2_000, **FEW), OK),
    "detokenize, a million ids": (DETOKENIZE, _list("tokens", "300", 10**6), REFUSED),
    "detokenize, 100,000 ids": (DETOKENIZE, _list("tokens", "300", 10**5), OK),
    "completions, a million ids": (TEXT, _list("prompt", "300", 10**6, **FEW), REFUSED),
    "completions, 30,000 ids": (TEXT, _list("prompt", "300", 30_000, **FEW), OK),
    "completions, 64 prompts of 10,000 ids": (
        TEXT,
        _list("prompt", "[" + ",".join(["300"] * 10_000) + "]", 64, **FEW),
        OK,
    ),
    "chat, 300 tools": (CHAT, _list("tools", TOOL, 300, messages=ASK, **FEW), OK),
    "chat, 4,000 tools": (CHAT, _list("tools", TOOL, 4_000, messages=ASK, **FEW), REFUSED),
    "chat, 4,000 messages of parts": (
        CHAT,
        _list(
            "messages",
            '{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}',
            4_000,
            **FEW,
        ),
        OK,
    ),
    "chat, 4,000 calls and results": (CHAT, _list("messages", f"{CALL},{RESULT}", 2_000, **FEW), OK),
    "chat, 4,000 parts": (CHAT, _parts("messages", '{"type":"text","text":"a"}', 4_000, **FEW), OK),
    "chat, 250 stop strings": (
        CHAT,
        _list("stop", '"word and word"', 250, messages=ASK, stream=True, max_tokens=400),
        REFUSED,
    ),
    "chat, 250 bad words": (CHAT, _list("bad_words", '"word and word"', 250, messages=ASK, **FEW), OK),
    "responses, 4,000 items": (RESPONSES, _list("input", USER, 4_000, max_output_tokens=4), OK),
    "responses, 2,000 calls and results": (
        RESPONSES,
        _list(
            "input",
            '{"type":"function_call","call_id":"a","name":"f","arguments":"{}"},'
            '{"type":"function_call_output","call_id":"a","output":"x"}',
            1_000,
            max_output_tokens=4,
        ),
        OK,
    ),
    "responses, 2,000 tools": (
        RESPONSES,
        _list(
            "tools",
            '{"type":"function","name":"f","parameters":{"type":"object","properties":{"a":{"type":"string"}}}}',
            2_000,
            input="hi",
            max_output_tokens=4,
        ),
        OK,
    ),
    "messages, 2,000 tools": (
        MESSAGES,
        _list("tools", '{"name":"f","input_schema":{"type":"object","properties":{}}}', 2_000, messages=ASK, **FEW),
        OK,
    ),
    "completions, 200 texts": (TEXT, _list("prompt", f'"{"word " * 200}"', 200, **FEW), OK),
    # As long as a body may be.
    "chat, 16 MiB of lists": (CHAT, _full("messages", "[]"), REFUSED),
    "chat, 16 MiB of empty messages": (CHAT, _full("messages", "{}"), REFUSED),
    "chat, 16 MiB of strings": (CHAT, _full("messages", '"a"'), REFUSED),
    "chat, 16 MiB of quotes in a text": (
        CHAT,
        _made(lambda: {"messages": [{"role": "user", "content": '"' * 8_000_000}]}),
        REFUSED,
    ),
    "chat, 16 MiB of commas in a text": (
        CHAT,
        _made(lambda: {"messages": [{"role": "user", "content": _text(12_000_000, '{},[], "a"')}]}),
        REFUSED,
    ),
    "responses, 16 MiB of empty items": (RESPONSES, _full("input", "{}"), REFUSED),
    "responses, 16 MiB of lists": (RESPONSES, _full("input", "[]"), REFUSED),
    "messages, 16 MiB of empty messages": (MESSAGES, _full("messages", "{}", **FEW), REFUSED),
    "completions, 16 MiB of ids": (TEXT, _full("prompt", "1", **FEW), REFUSED),
    "completions, 16 MiB of token lists": (TEXT, _full("prompt", "[1]", **FEW), REFUSED),
    "tokenize, 16 MiB of text": (TOKENIZE, _made(lambda: {"prompt": _text(16_000_000, "word ")}), REFUSED),
    "tokenize, 16 MiB of lists": (TOKENIZE, _full("messages", "[]"), REFUSED),
    "detokenize, 16 MiB of ids": (DETOKENIZE, _full("tokens", "1"), REFUSED),
    "detokenize, 16 MiB of strings": (DETOKENIZE, _full("tokens", '"a"'), REFUSED),
    "lora, 16 MiB of lists": ("/v1/load_lora_adapter", _full("lora_name", "[]"), 404),
    "invocations, 16 MiB of lists": ("/invocations", _full("messages", "[]"), REFUSED),
    "not JSON, 16 MiB of brackets": (CHAT, lambda: b"[" * FULL_BYTES, REFUSED),
    "not JSON, 16 MiB of digits": (CHAT, lambda: b'{"seed":' + b"9" * FULL_BYTES + b"}", REFUSED),
    "deep, 5,000 levels": (CHAT, lambda: b'{"messages":' + b"[" * 5_000 + b"]" * 5_000 + b"}", REFUSED),
    "deep, 900 levels in tools": (
        CHAT,
        lambda: _json(messages=ASK)()[:-1] + b',"tools":[' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"]}",
        REFUSED,
    ),
}
BODIES: dict[str, Hostile] = {name: Hostile(*one) for name, one in _SMALL.items()}

ENV = {
    "SLUICE_SYNTHETIC__ENABLED": "true",
    "SLUICE_SYNTHETIC__STEP_MS": "5",
    "SLUICE_ENGINE__MAX_MODEL_LEN": "131072",
}
"""A server that takes prompts of 100,000 tokens, and whose tokens cost nothing."""


def send(http: httpx.Client, body: Hostile) -> httpx.Response:
    """Send one, as JSON."""
    return http.post(body.path, content=body.make(), headers={"Content-Type": "application/json"})


def measure(http: httpx.Client, livez: LivezProbe, name: str) -> dict[str, Any]:
    """Send one; returns the probe's waits meanwhile."""
    body = BODIES[name]
    content = body.make()
    livez.lap()
    began_s = time.perf_counter()
    try:
        response = http.post(body.path, content=content, headers={"Content-Type": "application/json"})
        status: int | str = response.status_code
        size, text = len(response.content), response.text[:200]
    except httpx.HTTPError as error:
        status, size, text = type(error).__name__, 0, ""
    took_s = time.perf_counter() - began_s
    time.sleep(0.05)
    return {
        "name": name,
        "bytes": len(content),
        "status": status,
        "right": body.status,
        "seconds": round(took_s, 2),
        "livez_max_ms": livez.lap()["max_ms"],
        "answer_bytes": size,
        "text": text,
    }


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    """Send the bodies named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, help="of a server that runs; without it, one is started")
    parser.add_argument("--patience-s", type=float, default=60.0)
    parser.add_argument("names", nargs="*", help="beginnings of names; all without any")
    options = parser.parse_args()
    names = [name for name in BODIES if not options.names or any(name.startswith(one) for one in options.names)]
    server = None
    if options.port is None:
        server = Server(Path(tempfile.mkdtemp()), env=ENV)
    try:
        if server is not None:
            server.wait_ready()
        port = options.port if server is None else server.port
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=options.patience_s) as http,
            LivezProbe(port) as livez,
        ):
            for name in names:
                poll("the server is ready", lambda: _is_ready(http), 120, 0.1)
                found = measure(http, livez, name)
                wrong = "" if found["status"] == found["right"] else f"  NOT {found['right']}"
                print(
                    f"{name:42s} {found['bytes']:>9} B  {found['status']:>4} {found['seconds']:7.2f} s  "
                    f"livez {found['livez_max_ms']:8.1f} ms  answer {found['answer_bytes']:>8} B{wrong}  "
                    f"{found['text'] if wrong else found['text'][:110]}",
                    flush=True,
                )
            if server is not None:
                status = Path(f"/proc/{server.pid}/status").read_text()
                print(next(line for line in status.splitlines() if line.startswith("VmHWM")))
    finally:
        if server is not None:
            server.close()
            print(server.stderr()[-3000:])


if __name__ == "__main__":
    main()
