"""What the chart writes for the server is what the server reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import Settings, load
from tests.charts.chart import Object, find, render, scenarios, text

CASES = [
    (path, one["metadata"]["name"])
    for path in scenarios()
    for one in render(path)
    if one["kind"] == "ConfigMap" and "sluice.yaml" in (one.get("data") or {})
]


def _server(objects: list[Object], name: str) -> tuple[Object, Object]:
    """Pod and container."""
    for one in objects:
        if one["metadata"]["name"] == name and one["kind"] in {"Deployment", "LeaderWorkerSet"}:
            spec = one["spec"]
            pod: Object = spec["template"] if "template" in spec else spec["leaderWorkerTemplate"]["leaderTemplate"]
            return pod, pod["spec"]["containers"][0]
    raise AssertionError(name)


def _load(path: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, Object]:
    """The settings as the container would have them, its environment included."""
    objects = render(path)
    file = tmp_path / "sluice.yaml"
    file.write_text(find(objects, "ConfigMap", name)["data"]["sluice.yaml"], encoding="utf-8")
    _, container = _server(objects, name)
    for variable in container["env"]:
        if variable["name"].startswith("SLUICE_"):
            # What Kubernetes makes of it in a group.
            monkeypatch.setenv(variable["name"], variable["value"].replace("$(LWS_LEADER_ADDRESS)", "leader.group"))
    return load({}, file), container


@pytest.mark.parametrize(("path", "name"), CASES, ids=lambda value: getattr(value, "stem", value))
def test_the_server_takes_its_settings(path: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, container = _load(path, name, tmp_path, monkeypatch)

    assert settings.server.host == "0.0.0.0"
    assert settings.server.port == container["ports"][0]["containerPort"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    config = next(arg for arg in container["args"] if arg.startswith("--config=")).removeprefix("--config=")
    assert os.path.dirname(config) in mounts
    assert settings.server.api_keys_file is None or str(settings.server.api_keys_file.parent) in mounts
    assert container["command"] + container["args"][:1] == ["sluice", "serve"]


def test_the_leader_of_a_spread_group_gets_the_size_of_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(path for path in scenarios() if path.stem == "groups-values")
    settings, _ = _load(path, "rel-spread", tmp_path, monkeypatch)

    # Four pods with four GPUs each are eight engines of two GPUs, two a pod.
    assert settings.engine == {
        "tensor_parallel_size": 2,
        "data_parallel_size": 8,
        "data_parallel_size_local": 2,
        "data_parallel_rpc_port": 13345,
        "data_parallel_address": "leader.group",
        "served_model_name": ["spread"],
    }
    # Engines elsewhere start again only with their pods.
    assert settings.supervisor.max_restarts == 0


def test_followers_get_the_same_arguments() -> None:
    objects = render(next(path for path in scenarios() if path.stem == "groups-values"))
    for name, own in (("rel-spread", {"data-parallel-size-local": 2}), ("rel-whole", {"nnodes": 2})):
        data = find(objects, "ConfigMap", name)["data"]
        leader = yaml.safe_load(data["sluice.yaml"])["engine"]
        worker = yaml.safe_load(data["worker.yaml"])
        group = find(objects, "LeaderWorkerSet", name)["spec"]["leaderWorkerTemplate"]
        container = group["workerTemplate"]["spec"]["containers"][0]

        assert worker == {key.replace("_", "-"): value for key, value in leader.items()}
        assert own.items() <= worker.items()
        assert container["command"][:2] == ["sh", "-c"]
        assert container["command"][2].startswith('exec sluice engine "$MODEL" --config /etc/sluice/settings/')
        model = group["leaderTemplate"]["spec"]["containers"][0]["args"][1]
        assert {"name": "MODEL", "value": model} in container["env"]


def test_ranks_of_the_workers_do_not_overlap() -> None:
    """As the shell works them out, with the variables that the controller sets."""
    objects = render(next(path for path in scenarios() if path.stem == "groups-values"))
    group = find(objects, "LeaderWorkerSet", "rel-spread")["spec"]["leaderWorkerTemplate"]
    script = group["workerTemplate"]["spec"]["containers"][0]["command"][2].replace("exec sluice", "echo")
    ranks = []
    for index in range(1, group["size"]):
        environment = {
            "PATH": os.environ["PATH"],
            "LWS_WORKER_INDEX": str(index),
            "LWS_LEADER_ADDRESS": "l",
            "MODEL": "m",
        }
        output = subprocess.run(
            ["sh", "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout
        ranks.append(int(output.split()[-1]))

    assert ranks == [2, 4, 6]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"settings.supervisor.hang_timeout_s": 90}, ("supervisor", "hang_timeout_s", 90.0)),
        ({"settings.streams.keepalive_s": 5}, ("streams", "keepalive_s", 5.0)),
        ({"settings.synthetic": {"enabled": True, "step_ms": 3}}, ("synthetic", "step_ms", 3.0)),
        ({"drain.timeoutSeconds": 45}, ("server", "drain_timeout_s", 45.0)),
        ({"settings.log.json": False}, ("log", "as_json", False)),
    ],
)
def test_a_value_reaches_the_server(change: dict[str, Any], what: tuple[str, str, Any], tmp_path: Path) -> None:
    values = {"models.a.source.type": "demo", "models.a.gpu.count": 0}
    objects = render(values=values | {f"models.a.{key}": value for key, value in change.items()})
    file = tmp_path / "sluice.yaml"
    file.write_text(find(objects, "ConfigMap", "rel-a")["data"]["sluice.yaml"], encoding="utf-8")
    section, key, value = what

    assert getattr(getattr(load({}, file), section), key) == value


def test_a_changed_setting_is_a_rollout_and_a_new_chart_is_not() -> None:
    def annotation(**values: Any) -> str:
        base = {"models.a.source.type": "demo", "models.a.gpu.count": 0}
        pod, _ = _server(render(values=base | values), "rel-a")
        assert not any("version" in key or "chart" in key for key in pod["metadata"]["labels"])
        return str(pod["metadata"]["annotations"]["checksum/config"])

    assert annotation() == annotation(commonLabels={"a": "b"})
    assert annotation() != annotation(**{"models.a.settings.admission.max_waiting": 7})


def test_users_variables_win() -> None:
    objects = render(next(path for path in scenarios() if path.stem == "everything-values"))
    _, container = _server(objects, "models-qwen")

    assert [one for one in container["env"] if one["name"] == "HF_HOME"] == [{"name": "HF_HOME", "value": "/elsewhere"}]


def test_no_secret_is_in_the_output() -> None:
    for path in scenarios():
        assert "kind: Secret" not in text(path)


@pytest.mark.usefixtures("full_size")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["rel-spread", "rel-whole"])
def test_vllm_reads_the_workers_file(name: str, tmp_path: Path) -> None:
    """With vLLM's own parser of `vllm serve`, which takes its time to import."""
    objects = render(next(path for path in scenarios() if path.stem == "groups-values"))
    file = tmp_path / "worker.yaml"
    file.write_text(find(objects, "ConfigMap", name)["data"]["worker.yaml"], encoding="utf-8")
    program = (
        "import sys; from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = FlexibleArgumentParser(); commands = parser.add_subparsers(required=False, dest='subparser')\n"
        "make_arg_parser(commands.add_parser('serve'))\n"
        "args = parser.parse_args(sys.argv[1:])\n"
        "print(args.tensor_parallel_size, args.data_parallel_size, args.nnodes, args.served_model_name)\n"
    )
    words = ["serve", "m", "--headless", "--config", str(file)]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    wanted = {"rel-spread": "2 8 1 ['spread']", "rel-whole": "8 1 2 ['meta-llama/Llama-3.1-405B-Instruct']"}
    assert done.stdout.splitlines()[-1] == wanted[name]


@pytest.mark.usefixtures("full_size")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", [path for path in scenarios() if path.stem in {"values-cpu", "hpa-values"}])
def test_the_server_checks_its_settings(path: Path, tmp_path: Path) -> None:
    """`sluice check`, which asks vLLM, too."""
    for one in render(path):
        if one["kind"] == "ConfigMap":
            file = tmp_path / "sluice.yaml"
            file.write_text(one["data"]["sluice.yaml"], encoding="utf-8")
            words = [sys.executable, "-m", "gateway", "check", "--config", str(file)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
