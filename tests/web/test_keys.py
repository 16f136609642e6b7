from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import SettingsError
from gateway.web.keys import Keys, new_key
from tests.support.edge import key_line
from tests.support.time import VirtualClock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# who may call\n\n" + key_line("ann", "sk-a") + "  " + key_line("bob", "sk-b"), encoding="utf-8")
    return path


def replace(file: Path, text: str) -> None:
    """Write the file as an operator would; the time stamp moves, as it does in life."""
    before = file.stat().st_mtime_ns
    file.write_text(text, encoding="utf-8")
    os.utime(file, ns=(before + 10**9, before + 10**9))


def test_a_key_is_known_by_its_name(file: Path) -> None:
    keys = Keys(file, VirtualClock())

    assert keys.owner("Bearer sk-a") == "ann"
    assert keys.owner("bearer  sk-b ") == "bob"


@pytest.mark.parametrize("header", ["", "sk-a", "Basic sk-a", "Bearer", "Bearer ", "Bearer sk-c", "Bearer ann", "é"])
def test_anything_else_is_nobody(file: Path, header: str) -> None:
    assert Keys(file, VirtualClock()).owner(header) is None


def test_the_hash_in_the_file_is_not_a_key(file: Path) -> None:
    """Who reads the file must not be able to call the server."""
    digest = key_line("ann", "sk-a").split(":")[1].strip()

    assert Keys(file, VirtualClock()).owner(f"Bearer {digest}") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (key_line("ann", "a") + "\nnot a key\n", "line 3 is not `name:sha256`"),
        (key_line("ann", "a").upper(), "line 1"),
        ("ann:abc\n", "line 1"),
        (key_line("ann", "a") + key_line("ann", "b"), "line 2: ann is there twice"),
        ("# nobody yet\n", "holds no key"),
    ],
)
def test_a_bad_file_is_refused_with_the_line_to_mend(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        Keys(path, VirtualClock())


def test_a_message_about_a_bad_line_does_not_show_it(tmp_path: Path) -> None:
    """The likeliest mistake is a bare key in the file; it must not end up in a log."""
    path = tmp_path / "keys"
    path.write_text("sk-sluice-verysecret\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        Keys(path, VirtualClock())

    assert "verysecret" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", "binary"):
        with pytest.raises(SettingsError, match=f"server.api_keys_file: .*{name}"):
            Keys(tmp_path / name, VirtualClock())


def test_a_changed_file_counts_within_a_second(file: Path) -> None:
    clock = VirtualClock()
    keys = Keys(file, clock)
    replace(file, key_line("cleo", "sk-c"))

    assert keys.owner("Bearer sk-a") == "ann", "one look a second is enough"

    clock.advance(1.0)

    assert keys.owner("Bearer sk-a") is None
    assert keys.owner("Bearer sk-c") == "cleo"


@pytest.mark.parametrize("damage", ["half a li", None])
def test_a_file_that_goes_bad_keeps_the_last_good_keys(
    file: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """An editor that saves half a file must not lock everybody out."""
    clock = VirtualClock()
    keys = Keys(file, clock)
    if damage is None:
        file.unlink()
    else:
        replace(file, damage)
    clock.advance(2.0)

    assert keys.owner("Bearer sk-a") == "ann"
    assert "the last good keys stay" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR

    file.write_text(key_line("cleo", "sk-c"), encoding="utf-8")
    clock.advance(2.0)

    assert keys.owner("Bearer sk-c") == "cleo"


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True))
def test_a_new_key_is_known_under_its_name(name: str) -> None:
    key, line = new_key(name)

    assert key not in line
    assert line == key_line(name, key).strip()


def test_a_new_keys_line_makes_the_key_work(tmp_path: Path) -> None:
    key, line = new_key("ann")
    (tmp_path / "keys").write_text(line, encoding="utf-8")

    assert Keys(tmp_path / "keys", VirtualClock()).owner(f"Bearer {key}") == "ann"
    assert new_key("ann")[0] != key


@pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "a\n", "a" * 65])
def test_a_name_that_the_file_could_not_hold_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="1 to 64"):
        new_key(name)
