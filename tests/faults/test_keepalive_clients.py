"""Common clients read streams one byte at a time, with keep-alives every 50 ms in the queue, in prefill and between
tokens: none fails, none loses an event, and none takes a broken stream for a complete one.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.faults.conftest import Shared
from tests.support.chaos_proxy import Chaos, ChaosProxy
from tests.support.deterministic_text import expected_text
from tests.support.server import ASK, CHAT, MODEL, Server, poll
from tests.support.stream_client import COMPLETIONS, completion, prompt

NODE = Path(__file__).with_name("node")
BYTEWISE = Chaos(slice_bytes=1)
RESUMABLE = {"X-Stream-Resumable": "60"}
ASKED: dict[str, Any] = {
    "model": MODEL,
    "messages": ASK,
    "temperature": 0,
    "stream": True,
    "ignore_eos": True,
    "max_tokens": 120,
}
# Of every phase without output; several keep-alives long.
SILENCE_S = 0.4


@dataclass
class Received:
    """What a client's user got; `error` is the code or, of what has none, the class of what was raised."""

    text: str = ""
    finish: str | None = None
    error: str | None = None
    comments: int = 0

    def take(self, chunk: Any) -> None:
        for choice in chunk.choices:
            self.text += choice.delta.content or ""
            self.finish = choice.finish_reason or self.finish


Ask = Callable[[str, dict[str, Any], dict[str, str]], Received]


def openai_python(url: str, body: dict[str, Any], headers: dict[str, str]) -> Received:
    received = Received()
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        try:
            for chunk in client.chat.completions.create(**_split(body), extra_headers=headers):
                received.take(chunk)
        except openai.APIError as error:
            received.error = error.code or type(error).__name__
    return received


def openai_python_async(url: str, body: dict[str, Any], headers: dict[str, str]) -> Received:
    async def run() -> Received:
        received = Received()
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            try:
                async for chunk in await client.chat.completions.create(**_split(body), extra_headers=headers):
                    received.take(chunk)
            except openai.APIError as error:
                received.error = error.code or type(error).__name__
        return received

    return asyncio.run(run())


def _split(body: dict[str, Any]) -> dict[str, Any]:
    """Arguments that openai-python has, and the others."""
    return {**{name: value for name, value in body.items() if name != "ignore_eos"}, "extra_body": {"ignore_eos": True}}


def dispatches_at_blank_lines(url: str, body: dict[str, Any], headers: dict[str, str]) -> Received:
    """As many clients in Go and elsewhere read: comments are skipped line by line, and each blank line is the end of an
    event, which must have data."""
    received, done, data = Received(), False, ""
    try:
        with httpx.stream("POST", url + CHAT, json=body, headers=headers, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith(":"):
                    received.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    data = value if name == "data" else data
                elif data == "[DONE]":
                    done = True
                else:
                    _document(received, json.loads(data))
                    data = ""
    except httpx.HTTPError as error:
        received.error = type(error).__name__
    assert done or received.error, "a silent truncation"
    return received


def _document(received: Received, document: dict[str, Any]) -> None:
    if "error" in document:
        received.error = document["error"]["code"]
    for choice in document.get("choices", []):
        received.text += choice["delta"].get("content") or ""
        received.finish = choice["finish_reason"] or received.finish


def _node(folder: Path, *args: str) -> dict[str, Any]:
    ran = subprocess.run(
        ["node", "stream.mjs", *args],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=90,
        env=_environment(),
    )
    assert ran.returncode == 0, ran.stderr
    made: dict[str, Any] = json.loads(ran.stdout)
    return made


def _environment() -> dict[str, str]:
    # node and npm may have come with the virtual environment.
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def openai_node(folder: Path, url: str, body: dict[str, Any], headers: dict[str, str]) -> Received:
    made = _node(folder, "openai", f"{url}/v1", json.dumps(body), json.dumps(headers))
    error = made["error"]
    assert made["done"] == (error is None)
    return Received(made["text"], made["finish"], error and (error["code"] or error["name"]))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the npm packages."""
    if shutil.which("npm", path=_environment()["PATH"]) is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("faults") / "node"
    shutil.copytree(NODE, folder, ignore=shutil.ignore_patterns("node_modules"))
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]
    installed = subprocess.run(
        ["npm", "ci", *quiet], check=False, cwd=folder, capture_output=True, text=True, timeout=90, env=_environment()
    )
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.fixture
def clients(node: Path) -> dict[str, tuple[Ask, dict[str, str]]]:
    """Every client with the kinds of stream that it reads differently; as many as there are slots, less one."""
    npm = partial(openai_node, node)
    return {
        "openai-python": (openai_python, {}),
        "openai-python, resumable": (openai_python, RESUMABLE),
        "openai-python async": (openai_python_async, {}),
        "openai-python async, resumable": (openai_python_async, RESUMABLE),
        "openai-node": (npm, {}),
        "openai-node, resumable": (npm, RESUMABLE),
        "dispatches at blank lines": (dispatches_at_blank_lines, {}),
    }


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """The engine generates nothing."""
    pid = server.engine_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def begin(server: Server, body: dict[str, Any]) -> tuple[str, Future[bytes], ThreadPoolExecutor]:
    """Start a resumable stream and read it aside; its id, and its body to come."""
    ids: Future[str] = Future()

    def follow() -> bytes:
        with httpx.stream("POST", server.url + CHAT, json=body, headers=RESUMABLE, timeout=60) as response:
            ids.set_result(response.headers["x-stream-id"])
            return response.read()

    pool = ThreadPoolExecutor(1)
    whole = pool.submit(follow)
    return ids.result(30), whole, pool


def reference(server: Server) -> Received:
    received = Received()
    choice = server.ask(**{**ASKED, "stream": False})["choices"][0]
    received.text, received.finish = choice["message"]["content"], choice["finish_reason"]
    return received


@pytest.mark.timeout(180)
def test_no_client_loses_an_event_to_keep_alives(
    demo: Server, clients: dict[str, tuple[Ask, dict[str, str]]], node: Path, figure: Any
) -> None:
    """All at once: in the queue, in prefill, in a gap. An EventSource joins one stream, is cut, and comes back."""
    wanted = reference(demo)
    holder_id, holder, holding = begin(demo, {**ASKED, "max_tokens": 2000, "n": 8, "temperature": 1})
    generated = demo.sample("vllm:generation_tokens_total")
    with ExitStack() as stack, ThreadPoolExecutor(len(clients) + 2) as pool:
        proxies = {name: stack.enter_context(ChaosProxy(demo.port, BYTEWISE)) for name in clients}
        tasks = {name: pool.submit(ask, proxies[name].url, ASKED, more) for name, (ask, more) in clients.items()}
        joined_id, joined, joining = begin(demo, ASKED)
        source_proxy = stack.enter_context(ChaosProxy(demo.port, BYTEWISE))
        source_proxy.plan.append(Chaos(slice_bytes=1, cut_after=2500))
        source = pool.submit(_node, node, "eventsource", f"{source_proxy.url}/v1/streams/{joined_id}")
        poll("all wait", lambda: demo.sample("sluice_requests_waiting") == len(clients) + 1, 30)
        time.sleep(SILENCE_S)
        with stopped(demo):
            # Their slots are free now, and nothing comes of it.
            assert demo.http.delete(f"/v1/streams/{holder_id}").status_code == 200
            poll("slots are taken", lambda: demo.sample("sluice_requests_waiting") == 0, 10)
            time.sleep(SILENCE_S)
            generated = demo.sample("vllm:generation_tokens_total")
        poll("tokens flow", lambda: demo.sample("vllm:generation_tokens_total") > generated + 80, 30, 0.001)
        with stopped(demo):
            time.sleep(SILENCE_S)
        received = {name: task.result(60) for name, task in tasks.items()}
        events = source.result(60)
        body = joined.result(60)
    assert b'"code":"cancelled"' in holder.result(10)
    for executor in (holding, joining):
        executor.shutdown()

    wrong = {
        name: one
        for name, one in received.items()
        if (one.text, one.finish, one.error) != (wanted.text, "length", None)
    }
    comments = received["dispatches at blank lines"].comments
    lost = events["ids"] != list(range(1, len(events["ids"]) + 1)) or events["text"] != wanted.text
    figure(
        "keep-alive",
        f"{len(clients)} clients and an EventSource, 1-byte slices, {comments} keep-alives each: lost or failed",
        str(len(wrong) + lost),
        "0",
    )

    assert wrong == {}
    # At least one in each of the three silences.
    assert comments >= 3
    assert body.count(b": keep-alive\n") >= 3
    assert b": keep-alive\n\n" not in body
    assert not lost
    assert events["done"]
    assert events["error"] is None
    assert events["opened"] == 2, "cut once"
    assert events["closed"] == 204, "and a 204 ends its reconnecting"


def test_every_client_reports_an_error_in_the_stream(
    demo: Server, clients: dict[str, tuple[Ask, dict[str, str]]], figure: Any
) -> None:
    """The deadline passes after some output, in the middle of the stream."""
    body = {**ASKED, "max_tokens": 1900}
    with ExitStack() as stack, ThreadPoolExecutor(len(clients)) as pool:
        proxies = {name: stack.enter_context(ChaosProxy(demo.port, BYTEWISE)) for name in clients}
        tasks = {
            name: pool.submit(ask, proxies[name].url, body, {**more, "X-Request-Timeout": "0.3"})
            for name, (ask, more) in clients.items()
        }
        received = {name: task.result(90) for name, task in tasks.items()}
    errors = {name: one.error for name, one in received.items()}
    deaf = {name: error for name, error in errors.items() if error != "deadline_exceeded"}
    figure("keep-alive", f"{len(clients)} clients that miss an error event", str(len(deaf)), "0")

    assert deaf == {}
    assert all(one.finish is None for one in received.values())
    assert any(one.text for one in received.values())
    demo.wait_idle()


@pytest.mark.parametrize("by_rst", [False, True], ids=["fin", "rst"])
def test_no_client_takes_a_broken_stream_for_a_whole_one(
    demo: Server, clients: dict[str, tuple[Ask, dict[str, str]]], by_rst: bool, figure: Any
) -> None:
    chaos = Chaos(cut_after=5000, by_rst=by_rst)
    with ExitStack() as stack, ThreadPoolExecutor(len(clients)) as pool:
        proxies = {name: stack.enter_context(ChaosProxy(demo.port, chaos)) for name in clients}
        tasks = {name: pool.submit(ask, proxies[name].url, ASKED, more) for name, (ask, more) in clients.items()}
        received = {name: task.result(60) for name, task in tasks.items()}
    silent = {name: one for name, one in received.items() if one.error is None}
    figure(
        "keep-alive",
        f"{len(clients)} clients whose connection ends by {'RST' if by_rst else 'FIN'}: silent",
        str(len(silent)),
        "0",
    )

    assert silent == {}
    assert all(one.finish is None for one in received.values())
    assert all(proxy.cuts == 1 for proxy in proxies.values())
    demo.wait_idle()


def test_an_eventsource_comes_back_with_a_token_where_keys_are_on(synthetic: Shared, node: Path) -> None:
    """A browser's EventSource cannot send a key. It is cut once, and a 204 ends its reconnecting."""
    server, asked = synthetic.server, completion(1, 60)
    with (
        ChaosProxy(server.port, Chaos()) as proxy,
        httpx.stream(
            "POST", server.url + COMPLETIONS, json=asked, headers={**RESUMABLE, **synthetic.me}, timeout=60
        ) as begun,
    ):
        stream_id, token = begun.headers["x-stream-id"], begun.headers["x-stream-token"]
        proxy.plan.append(Chaos(cut_after=2500))
        events = _node(node, "eventsource", f"{proxy.url}/v1/streams/{stream_id}?token={token}")
    log = server.stderr()

    assert events["text"] == expected_text(prompt(1), 60)
    assert events["ids"] == list(range(1, len(events["ids"]) + 1))
    assert (events["done"], events["error"], events["opened"]) == (True, None, 2)
    # Nothing left; on a slow machine its time may be over, too (RETENTION_S).
    assert events["closed"] in (204, 410)
    assert f"/v1/streams/{stream_id}" in log
    assert token not in log
    assert "token=" not in log
