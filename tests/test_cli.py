from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.web.keys import Keys


def test_version_names_both_and_exits_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["sluice", "vllm"]


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["check", "--help"], ["key", "new", "--help"]])
def test_help_exits_well(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)

    assert left.value.code == 0
    assert "usage: sluice" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nonsense"], ["key"], ["serve", "--port", "x"], ["serve", "a", "b"]])
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)

    assert left.value.code == 2
    assert "usage: sluice" in capsys.readouterr().err


def test_no_command_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: sluice" in capsys.readouterr().out


def test_a_new_key_works_with_the_line_beside_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["key", "new", "ann"]) == 0

    key, line = (part.strip() for part in capsys.readouterr().out.splitlines()[1::2])
    (tmp_path / "keys").write_text(line, encoding="utf-8")

    assert Keys(tmp_path / "keys").owner(key.encode()) == "ann"


def test_a_new_operators_key_is_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["key", "new", "--operator", "root"]) == 0

    key, line = (part.strip() for part in capsys.readouterr().out.splitlines()[1::2])
    (tmp_path / "keys").write_text(line, encoding="utf-8")
    keys = Keys(tmp_path / "keys")

    assert keys.owner(key.encode()) == "root"
    assert keys.is_operator("root")


@pytest.mark.parametrize(
    "words",
    [
        ["key", "new", "a b"],
        ["check", "--config", "/nowhere/sluice.yaml"],
        ["check", "--port", "99999"],
        ["serve", "--config", "/nowhere/sluice.yaml"],
        ["serve", "--max-concurrent", "0", "--", "--max-model-len", "8"],
    ],
)
def test_bad_settings_exit_with_2_and_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything slow: vLLM has not been imported by then."""
    assert main(words) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("sluice: ")
    assert said.err.count("\n") == 1
    assert "vllm" not in sys.modules


def test_a_reader_who_has_read_enough_is_no_stack() -> None:
    """`sluice key new anna | head -1`, where `head` is the faster one."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "key", "new", "anna"],
            check=False,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writing)

    assert (done.returncode, done.stderr) == (1, "")
