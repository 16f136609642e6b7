from __future__ import annotations

import logging
import os
import threading
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import SettingsError
from gateway.transports.common import api_keys as keys_module
from gateway.transports.common.api_keys import ApiKeys, new_key
from tests.support.harness import key_line


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
    keys = ApiKeys(file)

    assert keys.owner(b"sk-a") == "ann"
    assert keys.owner(b"sk-b") == "bob"


@pytest.mark.parametrize("key", [b"", b"sk-c", b"ann", b"sk-a\n", "sk-\u00e4".encode(), b"\xff"])
def test_any_other_text_is_no_key(file: Path, key: bytes) -> None:
    assert ApiKeys(file).owner(key) is None


def test_the_hash_in_the_file_is_not_a_key(file: Path) -> None:
    """Who reads the file must not be able to call the server."""
    digest = key_line("ann", "sk-a").split(":")[1].strip()

    assert ApiKeys(file).owner(digest.encode()) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (key_line("ann", "a") + "\nnot a key\n", "line 3 is not `name:sha256`"),
        (key_line("ann", "a").upper(), "line 1"),
        (key_line("ann", "a", ":admin"), "line 1"),
        (key_line("ann", "a", ":operator:"), "line 1"),
        ("ann:abc\n", "line 1"),
        (key_line("ann", "a") + key_line("ann", "b"), "line 2: ann is listed twice"),
        ("# nobody yet\n", "holds no key"),
    ],
)
def test_an_invalid_file_is_refused_with_the_number_of_the_wrong_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=words):
        ApiKeys(path)


def test_a_message_about_a_bad_line_does_not_show_it(tmp_path: Path) -> None:
    """The likeliest mistake is a bare key in the file; it must not end up in a log."""
    path = tmp_path / "keys"
    path.write_text("sk-sluice-verysecret\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        ApiKeys(path)

    assert "verysecret" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("missing", "binary"):
        with pytest.raises(SettingsError, match=f"server.api_keys_file: .*{name}"):
            ApiKeys(tmp_path / name)


def test_a_changed_file_takes_effect_at_the_next_check(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    keys = ApiKeys(file)
    replace(file, key_line("cleo", "sk-c"))

    assert keys.owner(b"sk-a") == "ann"

    keys.refresh()
    keys.refresh()

    assert keys.owner(b"sk-a") is None
    assert keys.owner(b"sk-c") == "cleo"
    assert [record.getMessage() for record in caplog.records] == ["API keys read again: 1"]


def test_a_watched_file_is_checked_without_a_request(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first request after a quiet night would still get in with a key that is gone."""
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_S", 0.001)
    keys, looked = ApiKeys(file), threading.Event()
    look = keys.refresh
    monkeypatch.setattr(keys, "refresh", lambda: (look(), looked.set()))
    replace(file, key_line("cleo", "sk-c"))
    with keys.watch():
        assert looked.wait(10)

    assert keys.owner(b"sk-c") == "cleo"


def break_it(file: Path, damage: str) -> None:
    if damage in ("gone", "pipe", "folder"):
        file.unlink()
    if damage == "pipe":
        os.mkfifo(file)
    elif damage == "folder":
        file.mkdir()
    elif damage == "device":
        file.unlink()
        file.symlink_to("/dev/zero")
    elif damage == "half":
        replace(file, "half a li")
    elif damage == "empty":
        replace(file, "")
    elif damage == "huge":
        with file.open("r+b") as opened:
            opened.truncate(2**40)


@pytest.mark.parametrize("damage", ["half", "empty", "gone", "pipe", "folder", "device", "huge"])
def test_a_file_that_becomes_invalid_keeps_the_last_valid_keys(
    file: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An editor that saves half a file must not lock all clients out, nor a pipe in its place delay a request."""
    keys = ApiKeys(file)
    break_it(file, damage)
    for _ in range(3):
        keys.refresh()

    assert keys.owner(b"sk-a") == "ann"
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "once"
    assert "the last valid keys stay: server.api_keys_file" in caplog.text

    if damage == "folder":
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
    file.write_text(key_line("cleo", "sk-c"), encoding="utf-8")
    keys.refresh()

    assert keys.owner(b"sk-c") == "cleo"


@pytest.mark.parametrize(
    ("damage", "words"), [("pipe", "not a regular"), ("device", "not a regular"), ("huge", "larger")]
)
def test_such_a_file_is_refused_at_the_start(file: Path, damage: str, words: str) -> None:
    break_it(file, damage)
    with pytest.raises(SettingsError, match=words):
        ApiKeys(file)


def test_a_restored_file_is_valid_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a mount does that was away for a moment."""
    keys = ApiKeys(file)
    file.rename(file.with_suffix(".away"))
    keys.refresh()
    file.with_suffix(".away").rename(file)
    keys.refresh()

    assert keys.owner(b"sk-a") == "ann"

    file.unlink()
    keys.refresh()

    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2


def test_an_operators_key_is_marked_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(key_line("ann", "sk-a") + key_line("root", "sk-r", ":operator"))
    keys = ApiKeys(tmp_path / "keys")

    assert [keys.owner(key) for key in (b"sk-a", b"sk-r")] == ["ann", "root"]
    assert [keys.is_operator(name) for name in ("ann", "root", "cleo")] == [False, True, False]
    assert [keys.has_name(name) for name in ("ann", "root", "cleo")] == [True, True, False]


def test_a_key_with_two_names_has_the_same_permission(tmp_path: Path) -> None:
    text = key_line("ann", "sk-a") + key_line("ann2", "sk-a") + key_line("root", "sk-a", ":operator")
    (tmp_path / "keys").write_text(text)
    with pytest.raises(SettingsError, match="line 3: root has the same key as ann2, and other rights"):
        ApiKeys(tmp_path / "keys")


def test_a_request_costs_one_hash_however_many_keys_there_are(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("".join(key_line(f"n{number}", f"sk-{number}") for number in range(1000)))
    keys, hashed = ApiKeys(file), []
    monkeypatch.setattr(keys_module.hashlib, "sha256", lambda data: (hashed.append(data), sha256(data))[1])

    assert keys.owner(b"sk-999") == "n999"
    assert keys.owner(b"sk-wrong") is None
    assert hashed == [b"sk-999", b"sk-wrong"]


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True))
def test_a_new_key_is_known_under_its_name(name: str) -> None:
    key, line = new_key(name)

    assert key not in line
    assert line == key_line(name, key).strip()


def test_a_new_keys_line_makes_the_key_work(tmp_path: Path) -> None:
    key, line = new_key("ann")
    (tmp_path / "keys").write_text(line, encoding="utf-8")

    assert ApiKeys(tmp_path / "keys").owner(key.encode()) == "ann"
    assert new_key("ann")[0] != key


def test_a_new_operators_line_makes_an_operator(tmp_path: Path) -> None:
    key, line = new_key("root", operator=True)
    (tmp_path / "keys").write_text(line, encoding="utf-8")
    keys = ApiKeys(tmp_path / "keys")

    assert keys.owner(key.encode()) == "root"
    assert keys.is_operator("root")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "a\n", "a" * 65])
def test_a_name_that_the_file_cannot_hold_is_refused(name: str) -> None:
    for operator in (False, True):
        with pytest.raises(SettingsError, match="1 to 64"):
            new_key(name, operator=operator)
