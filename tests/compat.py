"""Run by `make compat`: the vLLM releases that Sluice supports, as they are built for GPUs, on a machine without one.

For each Python and vLLM there is an environment of its own under `.compat/` (8 to 9 GB each, shared with uv's cache
where the file system can). In it the unit and the integration tests run, then an engine without a model is served, and
its chunks are compared with vLLM's own. Prints a line for each; exits with 1 if any has failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
VLLMS = ("0.32.0", "0.33.0")
PYTHONS = ("3.12", "3.13")
# What tests need of what the locks name; vLLM brings the rest of the server's own dependencies.
NEEDED = ("fastapi", "hypothesis", "httptools", "httpx", "openai", "orjson", "prometheus-client", "pydantic-settings")
NEEDED += ("pytest", "pytest-timeout", "pyyaml", "setuptools>=77", "uvicorn", "uvloop")
# The load generator and the demo model's files, which have nothing to do with vLLM.
LEFT_OUT = ("unit/loadtest", "unit/gateway/demo")
STAGES: dict[str, list[str]] = {
    "unit tests": ["tests/unit", *(f"--ignore=tests/{name}" for name in LEFT_OUT)],
    "vLLM's own code": ["tests/integration/gateway"],
    "synthetic engine": ["tests/e2e/test_synthetic.py"],
    "chunks equal vLLM's": ["tests/e2e/test_equality.py"],
}
# A vLLM that was built for GPUs finds none here, and would stop.
ENVIRONMENT = {"VLLM_TARGET_DEVICE": "cpu", "REFERENCE_SYNTHETIC": "1"}


def run(*words: str | Path, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [str(word) for word in words], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def interpreter(python: str) -> str | None:
    """Where that Python is, if it is on this machine: on the path, or where pyenv or uv keep theirs."""
    homes = (Path.home() / ".pyenv" / "versions", Path.home() / ".local" / "share" / "uv" / "python")
    found = [shutil.which(f"python{python}")]
    found += [str(at) for home in homes for at in sorted(home.glob(f"*{python}.*/bin/python{python}"))]
    # A shim of pyenv's is on the path although the Python behind it may not be chosen.
    return next((at for at in found if at is not None and run(at, "-c", "")[0] == 0), None)


def environment(python: str, vllm: str, path: str) -> Path:
    """The Python of an environment with that vLLM, which is made if it is not there."""
    folder = ROOT / ".compat" / f"vllm-{vllm}-python-{python}"
    wanted = folder / "bin" / "python"
    done = folder / ".installed"
    if not done.exists():
        for words in (
            [UV, "venv", "-q", "--clear", "--python", path, folder],
            [UV, "pip", "install", "-q", "--python", wanted, f"vllm=={vllm}", *NEEDED],
            [UV, "pip", "install", "-q", "--python", wanted, "--no-deps", "--no-build-isolation", "-e", "."],
        ):
            code, output = run(*words)
            if code:
                raise SystemExit(f"cannot install vLLM {vllm} for Python {python}:\n{output[-2000:]}")
        done.touch()
    return wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="such as 3.12; may be repeated")
    parser.add_argument("--vllm", action="append", help="such as 0.33.0; may be repeated")
    parser.add_argument("--stage", action="append", choices=STAGES, help="one stage only; may be repeated")
    options = parser.parse_args()
    failed = False
    for python in options.python or PYTHONS:
        path = interpreter(python)
        for vllm in options.vllm or VLLMS:
            line = f"vLLM {vllm}, Python {python}"
            if path is None:
                print(f"{line}: this Python is not here", flush=True)
                continue
            at = environment(python, vllm, path)
            for stage in options.stage or STAGES:
                began_s = time.monotonic()
                code, output = run(at, "-m", "pytest", "-q", "--timeout", "300", *STAGES[stage], **ENVIRONMENT)
                summary = next((one for one in reversed(output.splitlines()) if one.strip()), "nothing printed")
                print(f"{line}: {stage}: {summary.strip('= ')} ({time.monotonic() - began_s:.0f} s)", flush=True)
                if code:
                    failed = True
                    print("\n".join(output.splitlines()[-60:]), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
