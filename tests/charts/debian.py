"""Programs that the tests need and that come as Debian packages.

Where they are not installed, their packages are downloaded and unpacked into the virtual environment: nothing is
installed on the machine, and no service is started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

# By program: the package, which is the same on Debian 12 and on Ubuntu.
PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "docker-registry": "docker-registry",
    "nginx": "nginx",
    "caddy": "caddy",
}
UNPACKED = Path(sys.prefix) / "debian"


@lru_cache
def program(name: str) -> str:
    """The path of a program; skips the test where it can neither be found nor be had."""
    if (found := shutil.which(name)) is not None:
        return found
    if (path := _unpacked(name)) is None:
        if shutil.which("apt-get") is None:
            pytest.skip(f"{name} is missing, and there is no apt-get; install what brings it")
        unpack(PACKAGES[name])
        path = _unpacked(name)
    return str(path)


def _unpacked(name: str) -> Path | None:
    places = (UNPACKED / "usr" / folder / name for folder in ("bin", "sbin"))
    return next((path for path in places if path.exists()), None)


def unpack(package: str) -> None:
    """Have a package's files in UNPACKED."""
    with tempfile.TemporaryDirectory() as folder:
        failure = _apt("download", package, folder)
        if failure and os.geteuid() == 0:
            # A fresh container has no lists of packages.
            failure = _apt("update", None, folder) or _apt("download", package, folder)
        if failure:
            pytest.skip(f"the Debian package {package} cannot be had ({failure}); install it")
        (archive,) = Path(folder).glob("*.deb")
        UNPACKED.mkdir(exist_ok=True)
        subprocess.run(["dpkg", "-x", str(archive), str(UNPACKED)], check=True)


def _apt(verb: str, package: str | None, folder: str) -> str | None:
    """Run apt-get there; returns its message if it fails."""
    words = ["apt-get", "-qq", verb, *([package] if package else [])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it fails"])[-1]
