"""The files of deploy/ hold to each other, to the chart and to the server: times, ports, users, names."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import Settings, load
from tests.charts.chart import CHART, render
from tests.deploy.prometheus import CONFIG
from tests.deploy.proxies import DEPLOY, ENVOY, NGINX

ROOT = DEPLOY.parent
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GATEWAYS = ["gateway-cpu", "gateway-gpu"]
DEFAULTS = Settings.model_construct()


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
    for path in DEPLOY.glob("Dockerfile*"):
        assert f'image.version="{version[1]}"' in path.read_text(encoding="utf-8")
    assert {SERVICES[name]["image"].removesuffix("-cpu") for name in GATEWAYS} == {f"sluice:{version[1]}"}


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
    assert nginx["keepalive_timeout"] < DEFAULTS.server.idle_timeout_s
    assert idle_s < DEFAULTS.server.idle_timeout_s
    assert f"client_max_body_size {DEFAULTS.server.max_body_bytes // 2**20}m;" in text


# systemd.


def test_systemd_waits_for_the_drain_and_signals_only_the_gateway() -> None:
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
