"""Programs that run while a test does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.server import poll


@contextmanager
def running(words: list[str], folder: Path, answers: Callable[[], bool]) -> Iterator[None]:
    """Run a program in a folder, with its output in a file there, once it answers."""
    log = folder / "output.log"
    with log.open("wb") as out:
        # Some keep things at home.
        env = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        process = subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)

    def ready() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-3000:]
        return answers()

    try:
        poll(f"{words[0]} answers", ready, 20, 0.05)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


__all__ = ["running"]
