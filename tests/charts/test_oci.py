"""The chart goes to a registry and comes back the same: a real one, on this machine."""

from __future__ import annotations

import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.charts.chart import CHART, HELM, command, text
from tests.charts.debian import program

# The first test may have to fetch a Debian package.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "registry.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "version": "0.1",
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
                "http": {"addr": address},
            }
        ),
        encoding="utf-8",
    )
    process = subprocess.Popen([program("docker-registry"), "serve", str(config)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{address}/v2/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def _helm(*words: str) -> str:
    done = subprocess.run([str(HELM), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_push_and_pull(registry: str, tmp_path: Path) -> None:
    _helm("package", str(CHART), "--destination", str(tmp_path))
    package = next(tmp_path.glob("sluice-*.tgz"))
    _helm("push", str(package), f"oci://{registry}/charts", "--plain-http")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["version"]
    (tmp_path / "back").mkdir()
    _helm("pull", f"oci://{registry}/charts/sluice", "--version", version, "--plain-http", "-d", str(tmp_path / "back"))
    back = tmp_path / "back" / package.name

    assert back.read_bytes() == package.read_bytes()
    values = CHART / "values-prod.yaml"
    words = [str(back) if word == str(CHART) else word for word in command(values)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == text(values)


def test_the_package_holds_what_users_need(tmp_path: Path) -> None:
    _helm("package", str(CHART), "--destination", str(tmp_path))
    with tarfile.open(next(tmp_path.glob("sluice-*.tgz"))) as archive:
        names = {name.removeprefix("sluice/") for name in archive.getnames()}

    assert {"README.md", "values.schema.json", "values-prod.yaml", "files/rules/slo.yaml", "files/hold.py"} <= names
    assert not [name for name in names if name.startswith("ci/")]
