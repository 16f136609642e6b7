"""Programs that the tests need and that come as Debian packages. Where they are missing, root gets them installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import lru_cache

import pytest

# By program: the package, which is the same on Debian 12 and on Ubuntu.
PACKAGES = {"promtool": "prometheus", "docker-registry": "docker-registry"}


@lru_cache
def program(name: str) -> str:
    """The path of a program; skips the test where it is missing and this user may not install it."""
    if (found := shutil.which(name)) is not None:
        return found
    package = PACKAGES[name]
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        pytest.skip(f"{name} is missing; install the Debian package {package}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", package]):
        done = subprocess.run([apt, *words], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"apt-get {' '.join(words)} failed: {done.stderr.strip()}")
    found = shutil.which(name)
    assert found is not None, f"the package {package} did not bring {name}"
    return found
