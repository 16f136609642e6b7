"""The list against a vLLM that is a folder of a few files."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from gateway.engine.vllm.compat import check
from gateway.engine.vllm.compat.internals import Internal, Kind
from gateway.errors import SettingsError

_BASE = """
from vllm.other import Base

class Client(Base[int]):
    limit: int = 1

    def __init__(self):
        self.queue = []

    def send(self, request, urgent=False):
        print("sent %d requests")

    @staticmethod
    def run(parent): ...
"""
_OTHER = """
try:
    from json import dumps
except ImportError:
    pass
WORDS = {}

class Base:
    def close(self): ...
"""


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    for name, text in (("client", _BASE), ("other", _OTHER), ("package/__init__", "def start(): ...")):
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return tmp_path


def entry(
    where: str, *names: str, kind: Kind = Kind.CALLS, since: str = "0.32", **parameters: tuple[str, ...]
) -> Internal:
    return Internal(where, names, kind, ("engine",), "a test needs it", parameters, since)


def problems(monkeypatch: pytest.MonkeyPatch, vllm: Path, *entries: Internal, version: str = "0.34.1") -> list[str]:
    monkeypatch.setattr(check, "INTERNALS", entries)
    return check.problems(vllm, version)


@pytest.mark.parametrize(
    "found",
    [
        entry("vllm.client:Client", "send", send=("request",)),
        entry("vllm.client:Client", "queue", "limit", "close", "__class__"),
        entry("vllm.client:Client", "run", run=("parent",)),
        entry("vllm.other", "dumps", "WORDS", "Base"),
        entry("vllm.package", "start"),
        entry("vllm.client", "sent %d requests", kind=Kind.FINDS),
        entry("argparse:ArgumentParser", "_actions"),
    ],
)
def test_names_that_are_there_are_found(monkeypatch: pytest.MonkeyPatch, vllm: Path, found: Internal) -> None:
    assert problems(monkeypatch, vllm, found) == []


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        (entry("vllm.client:Client", "receive"), "`receive` in vllm.client:Client"),
        (entry("vllm.client:Client", "send", send=("message",)), "`send(message)` in vllm.client:Client"),
        (entry("vllm.client:Server", "send"), "`Server` in vllm.client"),
        (entry("vllm.gone", "send"), "`vllm.gone`"),
        (entry("vllm.client", "received", kind=Kind.FINDS), "`received` in vllm.client"),
    ],
)
def test_a_missing_name_is_one_sentence_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, vllm: Path, missing: Internal, what: str
) -> None:
    (sentence,) = problems(monkeypatch, vllm, missing)

    kind = missing.kind.value
    assert sentence == f"vLLM 0.34.1 has no {what}, which Sluice {kind} because a test needs it. Use vLLM 0.32 or 0.33."


def test_names_of_a_newer_release_are_not_missed_in_the_older(monkeypatch: pytest.MonkeyPatch, vllm: Path) -> None:
    newer = entry("vllm.client:Client", "receive", since="0.33")

    assert problems(monkeypatch, vllm, newer, version="0.32.4") == []
    assert len(problems(monkeypatch, vllm, newer, version="0.33.0")) == 1


def test_a_start_with_another_vllm_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(check, "installed_version", lambda: "0.34.1")
    monkeypatch.setattr(check, "INTERNALS", (entry("vllm.gone", "send"),))
    with pytest.raises(SettingsError) as caught:
        check.require_fitting_vllm()

    assert caught.value.problems[0].startswith("vLLM 0.34.1 has no `vllm.gone`")

    monkeypatch.setattr(check, "INTERNALS", (entry("vllm.gone", "send"), entry("vllm.lost", "send")))
    with pytest.raises(
        SettingsError, match=r"`vllm\.gone`.* 1 other things are missing, too: `sluice check`"
    ) as caught:
        check.require_fitting_vllm()

    assert len(caught.value.problems) == 1

    monkeypatch.setattr(check, "INTERNALS", ())
    check.require_fitting_vllm()

    assert "vLLM 0.34.1 has everything" in caplog.text


def test_without_vllm_the_sentence_is_about_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "installed_version", lambda: "")

    assert check.problems()[0].startswith("vLLM is not installed.")
