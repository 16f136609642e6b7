"""`make install` after one that was interrupted, with a Python that only pretends to install."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

_PYTHON = """\
#!/bin/sh
# Pretends to be python3 and, below a virtual environment, that one's python.
here=$(dirname "$(dirname "$0")")
case "$1 $2 $3" in
"-c "*) exit 0 ;;
"-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    test "$STOP" = venv && exit 130
    touch "$3/pip" ;;
"-m pip --version") test -e "$here/pip" ;;
"-m pip install")
    test "$STOP" = torch && { touch "$here/half-a-package"; exit 130; }
    printf '#!/bin/sh\\ntest "$STOP" = uv && exit 130\\nexit 0\\n' > "$here/bin/uv" && chmod +x "$here/bin/uv" ;;
esac
"""


class Clone:
    """A clone with the Makefile and what it looks at."""

    def __init__(self, folder: Path) -> None:
        self.venv = folder / ".venv"
        self._folder = folder
        shutil.copy(ROOT / "Makefile", folder)
        shutil.copy(ROOT / "pyproject.toml", folder)
        shutil.copytree(ROOT / "deploy" / "requirements", folder / "deploy" / "requirements")
        self.python = folder / "python3"
        self.python.write_text(_PYTHON, encoding="utf-8")
        self.python.chmod(0o755)

    def install(self, stop: str = "") -> subprocess.CompletedProcess[str]:
        """Run it, to be interrupted at `stop`."""
        return subprocess.run(
            ["make", "install", f"PYTHON={self.python}"],
            cwd=self._folder,
            env={"PATH": os.environ["PATH"], "STOP": stop},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @property
    def left(self) -> set[str]:
        return {file.name for file in self.venv.iterdir()} if self.venv.exists() else set()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize("stop", ["venv", "torch", "uv"])
def test_after_an_interruption_it_begins_anew_and_ends_well(clone: Clone, stop: str) -> None:
    assert clone.install(stop).returncode != 0
    again = clone.install()

    assert again.returncode == 0, again.stderr
    assert "begins anew" in again.stdout
    assert clone.left == {"bin", "pip", ".installed"}
    assert not clone.venv.with_name(".venv.old").exists()


def test_an_interrupted_removal_does_not_matter_either(clone: Clone) -> None:
    clone.install("torch")
    clone.venv.rename(clone.venv.with_name(".venv.old"))

    assert clone.install().returncode == 0
    assert clone.left == {"bin", "pip", ".installed"}
    assert not clone.venv.with_name(".venv.old").exists()


def test_a_whole_environment_is_kept_and_brought_up_to_date(clone: Clone) -> None:
    assert clone.install().returncode == 0
    (clone.venv / "mine").touch()

    assert "installing" not in clone.install().stdout
    os.utime(clone.venv / ".installed", (0, 0))
    assert clone.install().returncode == 0
    assert clone.left == {"bin", "pip", ".installed", "mine"}


def test_an_environment_made_by_hand_is_used(clone: Clone) -> None:
    subprocess.run([clone.python, "-m", "venv", clone.venv], check=True)
    (clone.venv / "mine").touch()

    assert clone.install().returncode == 0
    assert clone.left == {"bin", "pip", ".installed", "mine"}
