from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import _load, _split_words, main, make_parser
from gateway.transports.common.api_keys import ApiKeys


def test_version_prints_both_versions_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["sluice", "vllm"]


@pytest.fixture(autouse=True)
def _without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of its own: other tests may have imported it."""
    monkeypatch.delitem(sys.modules, "vllm", raising=False)


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["check", "--help"], ["key", "new", "--help"]])
def test_help_exits_with_0(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
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

    assert ApiKeys(tmp_path / "keys").owner(key.encode()) == "ann"


def test_a_new_operators_key_is_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["key", "new", "--operator", "root"]) == 0

    key, line = (part.strip() for part in capsys.readouterr().out.splitlines()[1::2])
    (tmp_path / "keys").write_text(line, encoding="utf-8")
    keys = ApiKeys(tmp_path / "keys")

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

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("sluice: ")
    assert printed.err.count("\n") == 1
    assert "vllm" not in sys.modules


def test_a_closed_pipe_prints_no_stack_trace() -> None:
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


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--api-key", "hush"], "server.api_keys_file"),
        (["--api-k=hush"], "Did you mean `--api-key`?"),
        (["--", "--api-k", "hush"], "Did you mean `--api-key`?"),
        (["--api-keys-file", "sk-hush"], "not a key"),
        (["--prot", "1"], "Did you mean `--port`?"),
        (["--por", "1"], "Did you mean `--port`?"),
        (["--max-modl-len", "8192"], "Did you mean `--max-model-len`?"),
        (["--", "--max-modl-len", "8192"], "Did you mean `--max-model-len`?"),
        (["--", "--config", "f.yaml"], "`engine:`"),
        (["m", "--", "n"], "Two models are named"),
        (["--", "m", "n"], "2 models are named"),
        (["--", "--port", "99999"], "server.port (flag --port): '99999'"),
        (["--ssl-keyfile", "k"], "server.tls.cert_file"),
        (["--uds"], "--uds needs a value."),
        (["--port", "1", "--served-model-name", "a", "org/m"], "org/m is taken as a value of --served-model-name."),
    ],
)
def test_wrong_flags_are_reported_at_once_and_without_their_values(
    command: str, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *words]) == 2

    errors = capsys.readouterr().err
    assert expected in errors
    assert "hush" not in errors
    assert errors.startswith("sluice: ")
    assert errors.count("\n") == 1
    assert "vllm" not in sys.modules


def test_a_check_reports_all_problems_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hush")
    monkeypatch.setenv("SLUICE_SERVER__PROT", "1")
    (tmp_path / "f.yaml").write_text(
        "port: 9000\nmax-model-len: 3\nserver: {max_concurrent: 1, host: [a]}\nengine: {prot: 1, tensor_parallel: 2}\n"
    )

    assert main(["check", "--config", str(tmp_path / "f.yaml"), "--max-waiting", "-1", "--", "--grpc"]) == 2

    errors = capsys.readouterr().err
    assert errors.count("\n") == 10
    for expected in (
        "--grpc (after `--`)",
        "VLLM_API_KEY",
        "SLUICE_SERVER__PROT",
        "Did you mean `server.port`?",
        "`engine.max_model_len`",
        "Did you mean `admission.max_concurrent`?",
        "server.host (in",
        "admission.max_waiting (flag --max-waiting): -1",
        "engine.prot (in",
        "Did you mean `tensor_parallel_size`?",
    ):
        assert expected in errors
    assert "hush" not in errors


def test_sluices_own_options_may_not_be_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--hel"]) == 2
    for words in (["key", "new", "a", "--operato"], ["--vers"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2
    assert capsys.readouterr().out == ""


def test_a_variable_of_vllm_sets_the_setting_that_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is set nowhere else."""
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "7")
    parser = make_parser()
    words, flags = _split_words(parser, ["serve", "--uvicorn-log-level", "error", "m", "--dtype", "auto"])
    args = parser.parse_args(words)

    assert args.model == "m"
    assert flags.flags == ["--dtype", "auto"]
    settings = _load(args, flags)
    assert settings.server.idle_timeout_s == 7
    assert settings.log.level == "error"

    monkeypatch.setenv("SLUICE_SERVER__IDLE_TIMEOUT_S", "9")
    assert _load(args, flags).server.idle_timeout_s == 9


def test_the_engine_command_suggests_the_nearest_flag_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "m", "--data-paralel-size", "2"]) == 2

    assert "Did you mean `--data-parallel-size`?" in capsys.readouterr().err
    assert "vllm" not in sys.modules
