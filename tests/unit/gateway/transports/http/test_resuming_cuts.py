"""A stream that is cut anywhere and resumed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.errors import EngineFailed, Overloaded
from tests.support.asgi import Client, read_events
from tests.support.engine import Run
from tests.support.harness import HttpHarness
from tests.support.time import run, settle

RESUMABLE = {"X-Stream-Resumable": "60"}


Play = Callable[[Run], list[Callable[[], object]]]


def plain(engine_run: Run) -> list[Callable[[], object]]:
    """Text, with an emoji to cut in two, and a token that adds none."""
    return [
        lambda: engine_run.put_text("Hel"),
        lambda: engine_run.put_text(""),
        lambda: engine_run.put_text("lo \N{GRINNING FACE}\n\n"),
        lambda: engine_run.end("!"),
    ]


def formatted(engine_run: Run) -> list[Callable[[], object]]:
    """Chunks that vLLM has formatted."""
    return [
        lambda: engine_run.document(b'{"a":"data: x"}'),
        lambda: engine_run.document('{"b":"\N{GRINNING FACE}"}'.encode()),
        engine_run.finish,
    ]


def failing(engine_run: Run) -> list[Callable[[], object]]:
    """An error in the middle."""
    return [
        lambda: engine_run.put_text("Hel"),
        lambda: engine_run.fail(EngineFailed("The engine died.")),
    ]


def failing_silently(engine_run: Run) -> list[Callable[[], object]]:
    """An error after nothing but a sign of life."""
    return [lambda: engine_run.fail(Overloaded("Full."))]


PLAYS = pytest.mark.parametrize("play", [plain, formatted, failing, failing_silently])


def seen(body: bytes) -> tuple[bytes, int]:
    """What a reader keeps of a body that was cut: its whole events, and the number of the last of them."""
    whole = body[: body.rfind(b"\n\n") + 2] if b"\n\n" in body else b""
    return whole, max((number or 0 for number, _ in read_events(whole)), default=0)


@PLAYS
def test_a_stream_cut_at_every_byte_and_resumed_is_byte_for_byte_the_uncut_one(play: Play) -> None:
    """Both while the stream is still running and after its end."""

    async def cut_everywhere() -> None:
        harness = HttpHarness(keepalive_s=10)
        client = harness.post(headers=RESUMABLE, formatted=play is formatted)
        await asyncio.sleep(11)
        engine_run = harness.engine.runs[0]
        resumed: list[tuple[bytes, Client]] = []

        def resume_everywhere(body: bytes) -> None:
            known = {whole for whole, _ in resumed}
            for cut in range(len(body) + 1):
                whole, last = seen(body[:cut])
                if whole not in known:
                    known.add(whole)
                    resumed.append((whole, harness.resume(engine_run.id, last)))

        for act in play(engine_run):
            resume_everywhere(client.body)
            act()
            await settle()
        await client.finish()
        uncut = client.body.removeprefix(b": keep-alive\n")
        for cut in range(len(uncut) + 1):
            whole, last = seen(uncut[:cut])
            back = await harness.resume(engine_run.id, last).finish()

            assert whole + back.body == uncut, f"cut at byte {cut}, after event {last}"
            assert (back.status, back.complete) == ((204 if whole == uncut else 200), True)

        for whole, back in resumed:
            await back.finish()

            assert whole.removeprefix(b": keep-alive\n") + back.body == uncut

        assert [document for _, document in read_events(uncut)][-1] == "[DONE]"
        assert [number for number, _ in read_events(uncut)] == list(range(1, uncut.count(b"\n\n") + 1))

    run(cut_everywhere(), debug=False)
