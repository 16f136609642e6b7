"""The command in installations without the extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loadtest.cli import make_parser

_WITHOUT = "import sys; sys.modules[sys.argv[1]] = None; from loadtest.cli import main; sys.exit(main(sys.argv[2:]))"


@pytest.mark.parametrize("missing", ["gevent", "locust"])
def test_a_missing_module_is_named_with_its_extra(missing: str) -> None:
    words = [sys.executable, "-c", _WITHOUT, missing, "run", "smoke", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith(f"sluice-load: {missing}")
    assert done.stderr.endswith(" is missing. Install the extra: pip install 'sluice[loadtest]'\n")


def test_scenarios_are_listed_without_the_extra() -> None:
    words = [sys.executable, "-c", _WITHOUT, "locust", "scenarios"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)

    assert "smoke" in done.stdout


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize("word", ["--api-k", "--api"])
def test_options_cannot_be_abbreviated(command: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An abbreviated key would be accepted, and not be masked in the report."""
    with pytest.raises(SystemExit) as left:
        make_parser().parse_args([command, "smoke", "--url", "http://x", word, "hush"])

    assert left.value.code == 2
    assert "hush" not in capsys.readouterr().err
