"""The effect of single options on a pod or an object, where a schema cannot find a mistake."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.charts.chart import CHART, Object, find, pods, render

DEMO: dict[str, Any] = {"models.a.source.type": "demo", "models.a.gpu.count": 0}


def scenario(name: str) -> list[Object]:
    return render(CHART / "ci" / f"{name}-values.yaml")


def _pod(objects: list[Object], name: str) -> Object:
    spec: Object = find(objects, "Deployment", name)["spec"]["template"]["spec"]
    return spec


def env_of(container: Object) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", ())}


@pytest.mark.parametrize(
    ("name", "argument", "offline"),
    [
        ("rel-claim", "/models/some/model", True),
        ("rel-node", "/models", True),
        ("rel-oci", "/models/qwen", True),
        ("rel-bucket", "s3://models/qwen", False),
        ("rel-fetched", "/models/Qwen/Qwen3-8B/main", True),
    ],
)
def test_where_weights_come_from(name: str, argument: str, offline: bool) -> None:
    pod = _pod(scenario("sources"), name)
    server = pod["containers"][0]
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}

    assert server["args"][1] == argument
    assert ("HF_HUB_OFFLINE" in env_of(server)) is offline
    assert ("/models" in mounts) is offline
    assert not offline or mounts["/models"]["readOnly"] is True


def test_the_hub_is_requested_with_token_and_revision() -> None:
    objects = scenario("keda")
    env = env_of(_pod(objects, "rel-qwen")["containers"][0])
    settings = find(objects, "ConfigMap", "rel-qwen")["data"]["sluice.yaml"]

    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert env["HF_ENDPOINT"] == "https://mirror.example.com"
    assert "HF_HUB_OFFLINE" not in env
    for key in ("revision", "tokenizer_revision"):
        assert re.search(rf'(?m)^  {key}: "?0123456789abcdef0123456789abcdef01234567"?$', settings)


def test_streaming_from_a_bucket() -> None:
    objects = scenario("sources")
    env = env_of(_pod(objects, "rel-bucket")["containers"][0])

    assert "load_format: runai_streamer" in find(objects, "ConfigMap", "rel-bucket")["data"]["sluice.yaml"]
    assert env["AWS_ENDPOINT_URL"] == "http://minio.storage:9000"
    assert env["AWS_SECRET_ACCESS_KEY"] == {"secretKeyRef": {"name": "s3", "key": "AWS_SECRET_ACCESS_KEY"}}


def test_pods_wait_for_the_download(tmp_path: Path) -> None:
    """Both programs, as the shell runs them: the Job's download is replaced by one that takes a moment."""
    objects = scenario("sources")
    job = next(one for one in objects if one["kind"] == "Job" and one["metadata"]["name"].startswith("rel-fetched-get"))
    claim = job["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    get = job["spec"]["template"]["spec"]["containers"][0]
    pod = _pod(objects, "rel-fetched")
    wait = pod["initContainers"][0]
    weights = next(volume for volume in pod["volumes"] if volume["name"] == "weights")

    assert find(objects, "PersistentVolumeClaim")["metadata"]["name"] == claim
    assert weights["persistentVolumeClaim"]["claimName"] == claim
    assert env_of(get)["MODEL"] == env_of(wait)["MODEL"] == pod["containers"][0]["args"][1]
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "hf").write_text('#!/bin/sh\nsleep 0.5\nprintf "%s " "$@" > "$MODEL/asked"\n', encoding="utf-8")
    (tools / "hf").chmod(0o755)
    env = {"PATH": f"{tools}:/usr/bin:/bin", "MODEL": str(tmp_path / "m"), "REPOSITORY": "Qwen/X", "REVISION": "main"}
    waiting = subprocess.Popen([*wait["command"][:2], wait["command"][2].replace("sleep 5", "sleep 0.05")], env=env)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.3)
    subprocess.run(get["command"], env=env, check=True)

    assert waiting.wait(10) == 0
    # Where the weights never come, the pod can be stopped all the same: a shell that is process 1 needs a trap for it.
    stopped = subprocess.Popen([*wait["command"][:2], wait["command"][2].replace("sleep 5", "sleep 0.05")],
                               env=env | {"MODEL": "/nowhere"}, stdout=subprocess.PIPE)  # fmt: skip
    assert stopped.stdout is not None
    stopped.stdout.readline()
    stopped.terminate()
    stopped.stdout.close()
    assert stopped.wait(10) == 143
    asked = (tmp_path / "m" / "asked").read_text(encoding="utf-8")
    assert asked == f"download Qwen/X --revision main --local-dir {tmp_path / 'm'} "
    # What is there is not fetched again.
    (tools / "hf").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    subprocess.run(get["command"], env=env, check=True)


def test_a_broken_download_leaves_no_mark(tmp_path: Path) -> None:
    job = next(one for one in scenario("sources") if one["kind"] == "Job")
    (tmp_path / "hf").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "hf").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MODEL": str(tmp_path / "m"), "REPOSITORY": "x", "REVISION": "main"}
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]

    assert subprocess.run(command, env=env, check=False).returncode != 0
    assert not (tmp_path / "m" / ".complete").exists()


def test_keys_are_a_file_that_can_change() -> None:
    objects = scenario("keda")
    pod = _pod(objects, "rel-qwen")
    volume = next(volume for volume in pod["volumes"] if volume["name"] == "api-keys")
    mount = next(mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "api-keys")

    assert volume["secret"] == {"secretName": "keys", "items": [{"key": "lines", "path": "api-keys"}]}
    # Kubernetes never updates a mount with subPath.
    assert mount == {"name": "api-keys", "mountPath": "/etc/sluice/keys", "readOnly": True}
    assert "api_keys_file: /etc/sluice/keys/api-keys" in find(objects, "ConfigMap", "rel-qwen")["data"]["sluice.yaml"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "nginx",
            {
                "nginx.ingress.kubernetes.io/proxy-buffering": "off",
                "nginx.ingress.kubernetes.io/proxy-request-buffering": "off",
                "nginx.ingress.kubernetes.io/proxy-http-version": "1.1",
                "nginx.ingress.kubernetes.io/proxy-next-upstream": "error timeout",
                # The scenario's own wins; the other follows streams.max_timeout_s.
                "nginx.ingress.kubernetes.io/proxy-read-timeout": "7200",
                "nginx.ingress.kubernetes.io/proxy-send-timeout": "1800",
                "nginx.ingress.kubernetes.io/proxy-body-size": "16777216",
            },
        ),
        (
            "alb",
            {
                "alb.ingress.kubernetes.io/target-type": "ip",
                "alb.ingress.kubernetes.io/healthcheck-path": "/readyz",
                "alb.ingress.kubernetes.io/load-balancer-attributes": "idle_timeout.timeout_seconds=900",
                "alb.ingress.kubernetes.io/target-group-attributes": "deregistration_delay.timeout_seconds=630,"
                "load_balancing.algorithm.type=least_outstanding_requests",
            },
        ),
        (
            "haproxy",
            {
                "haproxy.org/timeout-server": "3600s",
                "haproxy.org/timeout-client": "3600s",
                "haproxy.org/load-balance": "leastconn",
                "haproxy.org/check": "true",
                "haproxy.org/check-http": "/readyz",
            },
        ),
        ("traefik", None),
    ],
)
def test_ingress_annotations_let_streams_through(name: str, wanted: dict[str, str] | None) -> None:
    assert find(scenario("ingress"), "Ingress", f"rel-{name}")["metadata"].get("annotations") == wanted


def test_dra_requests_as_many_gpus() -> None:
    objects = scenario("dra")
    request = find(objects, "ResourceClaimTemplate")["spec"]["spec"]["devices"]["requests"][0]
    pod = _pod(objects, "rel-qwen")

    assert request["exactly"] == {"deviceClassName": "gpu.nvidia.com", "allocationMode": "ExactCount", "count": 2}
    assert pod["containers"][0]["resources"]["claims"] == [{"name": pod["resourceClaims"][0]["name"]}]


def test_other_devices_are_another_template_of_claims() -> None:
    """One that is there cannot be changed: with the same name, an upgrade would fail."""
    scenario = CHART / "ci" / "dra-values.yaml"
    change: dict[str, Any] = {"models.qwen.gpu.dra.deviceClassName": "mig.nvidia.com"}
    names = [
        find(render(scenario, values=values), "ResourceClaimTemplate")["metadata"]["name"] for values in ({}, change)
    ]
    same = find(render(scenario, values={"models.qwen.replicas": 2}), "ResourceClaimTemplate")["metadata"]["name"]

    assert names[0] == same != names[1]


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({}, ["nvidia.com/gpu"]),
        ({"models.a.gpu.resource": "nvidia.com/mig-1g.10gb"}, ["nvidia.com/gpu"]),
        ({"models.a.gpu.resource": "amd.com/gpu"}, ["amd.com/gpu"]),
        # A pod without GPUs has no business on their nodes.
        (DEMO, []),
        ({"models.a.tolerations": [{"key": "mine", "operator": "Exists"}]}, ["mine"]),
    ],
)
def test_pods_that_need_gpus_may_run_where_they_are(values: dict[str, Any], keys: list[str]) -> None:
    pod = _pod(render(values={"models.a.source.repository": "x"} | values), "rel-a")

    assert [one["key"] for one in pod.get("tolerations", ())] == keys


def test_a_pod_gets_its_other_devices() -> None:
    values = DEMO | {"models.a.resources.extended": {"rdma/ib": 1, "vpc.amazonaws.com/efa": "4"}}
    limits = _pod(render(values=values), "rel-a")["containers"][0]["resources"]["limits"]

    assert limits == {"memory": "32Gi", "rdma/ib": "1", "vpc.amazonaws.com/efa": "4"}


@pytest.mark.parametrize(
    ("values", "cpu", "shm"),
    [
        (DEMO, "3", "1Gi"),
        (DEMO | {"models.a.settings.server.workers": 4}, "6", "1Gi"),
        ({"models.a.source.repository": "x"}, "3", "1Gi"),
        (
            {
                "models.a.source.repository": "x",
                "models.a.gpu.count": 4,
                "models.a.engine": {"tensor_parallel_size": 2, "data_parallel_size": 2},
            },
            "7",
            "16Gi",
        ),
    ],
)
def test_resources_follow_from_the_parallelism(values: dict[str, Any], cpu: str, shm: str) -> None:
    pod = _pod(render(values=values), "rel-a")

    assert pod["containers"][0]["resources"]["requests"]["cpu"] == cpu
    assert next(one["emptyDir"]["sizeLimit"] for one in pod["volumes"] if one["name"] == "shm") == shm


@pytest.mark.parametrize(("quantity", "fits"), [("9Gi", True), ("9663676416", True), ("9.7G", True), ("9.6G", False)])
def test_quantities_are_understood(quantity: str, fits: bool) -> None:
    """8Gi beside 1Gi of /dev/shm are needed, which is 9,663,676,416 bytes."""
    values = {
        "models.a.source.repository": "x",
        "models.a.resources": {"limits": {"memory": quantity}, "requests": {"memory": "1Gi"}},
    }
    if fits:
        assert _pod(render(values=values), "rel-a")["containers"][0]["resources"]["limits"]["memory"] == quantity
    else:
        with pytest.raises(AssertionError, match="less than /dev/shm"):
            render(values=values)


@pytest.mark.parametrize("preset", ["alb", "nginx"])
def test_the_server_keeps_connections_longer_than_the_load_balancer(preset: str) -> None:
    """The other way round, requests are now and then sent into a connection that is being closed."""
    values = DEMO | {"models.a.ingress": {"enabled": True, "preset": preset, "host": "a.example.com"}}
    objects = render(values=values)
    annotations = find(objects, "Ingress")["metadata"]["annotations"]
    found = re.search(r"idle_timeout[.]timeout_seconds=(\d+)", " ".join(annotations.values()))
    settings = find(objects, "ConfigMap", "rel-a")["data"]["sluice.yaml"]
    kept = re.search(r"(?m)^  idle_timeout_s: (\d+)$", settings)

    assert kept is not None
    assert preset != "alb" or (found is not None and int(found[1]) < int(kept[1]))


@pytest.mark.parametrize(
    ("change", "renamed"),
    [
        ({"models.a.replicas": 2}, 0),
        ({"commonLabels": {"a": "b"}}, 2),
        ({"imagePullSecrets": [{"name": "registry"}]}, 2),
        ({"serviceAccount.name": "other"}, 2),
        ({"models.a.source.revision": "other"}, 1),
        ({"models.a.tolerations": []}, 1),
        ({"models.a.image.tag": "9", "loadTest.image.tag": "9"}, 2),
        ({"loadTest.scenario": "rag"}, 1),
        ({"models.a.service.port": 80}, 1),
        ({"loadTest.nodeSelector": {"pool": "cpu"}}, 1),
        ({"models.a.probes.startup.failureThreshold": 900}, 1),
        ({"commonAnnotations": {"a": "b"}}, 0),
        ({"modelDefaults.podSecurityContext.runAsUser": 1000}, 2),
    ],
)
def test_jobs_change_their_name_with_their_pods(change: dict[str, Any], renamed: int) -> None:
    """A Job cannot be changed: with another pod and the same name, an upgrade would fail."""
    base = {
        "models.a.source": {"type": "download", "repository": "x", "revision": "main"},
        "loadTest.enabled": True,
    }

    def jobs(values: dict[str, Any]) -> dict[str, Object]:
        return {
            one["metadata"]["name"]: one["spec"]["template"] for one in render(values=values) if one["kind"] == "Job"
        }

    before, after = jobs(base), jobs(base | change)
    assert len(before.keys() - after.keys()) == renamed
    for name in before.keys() & after.keys():
        assert before[name] == after[name]


def test_a_new_version_is_a_new_job(tmp_path: Path) -> None:
    """The images' default tag is the chart's appVersion."""
    shutil.copytree(CHART, tmp_path / "sluice")
    meta = tmp_path / "sluice" / "Chart.yaml"
    meta.write_text(re.sub("appVersion: .*", 'appVersion: "9.9.9"', meta.read_text(encoding="utf-8")), encoding="utf-8")
    values = {"models.a.source": {"type": "download", "repository": "x", "revision": "main"}, "loadTest.enabled": True}
    old, new = (
        {one["metadata"]["name"] for one in render(values=values, chart=chart) if one["kind"] == "Job"}
        for chart in (CHART, tmp_path / "sluice")
    )

    assert len(old) == len(new) == 2
    assert not old & new


def test_pod_labels_that_prometheus_gives_are_those_that_queries_look_for() -> None:
    objects = scenario("keda")
    monitor = find(objects, "PodMonitor")["spec"]
    labels = find(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    given = {re.sub(r"[^a-zA-Z0-9_]", "_", name): labels[name] for name in monitor["podTargetLabels"]}

    assert labels[monitor["jobLabel"]] == "sluice"
    query = find(render(values=DEMO | {"models.a.autoscaling.enabled": True}), "ScaledObject")["spec"]["triggers"][1]
    asked = dict(re.findall(r'(\w+)="([^"]*)"', query["metadata"]["query"]))
    assert asked == {"job": "sluice", "namespace": "serving", "app_kubernetes_io_instance": "rel", "sluice_model": "a"}
    assert given.keys() == asked.keys() - {"job", "namespace"}


def test_scaled_is_what_exists() -> None:
    for name, kind in (("hpa", "Deployment"), ("groups", "LeaderWorkerSet")):
        objects = scenario(name)
        for one in objects:
            if one["kind"] in {"ScaledObject", "HorizontalPodAutoscaler"}:
                target = one["spec"]["scaleTargetRef"]
                assert target["kind"] == kind
                assert find(objects, kind, target["name"])["apiVersion"] == target["apiVersion"]


def test_a_cluster_may_give_out_the_users() -> None:
    """As OpenShift does, which refuses pods that name one. They may still not be root."""
    values: dict[str, Any] = {
        "modelDefaults.podSecurityContext.runAsUser": None,
        "modelDefaults.podSecurityContext.fsGroup": None,
        "modelDefaults.inferencePool.endpointPicker.podSecurityContext.runAsUser": None,
        "models.demo.source": {"type": "download", "repository": "x", "revision": "main"},
        "loadTest.enabled": True,
        "modelDefaults.route": {"enabled": True, "parentRefs": [{"name": "public"}]},
        "modelDefaults.inferencePool.enabled": True,
        "modelDefaults.inferencePool.endpointPicker.image": "picker:1",
    }
    contexts = [pod["spec"]["securityContext"] for _, pod in pods(render(values=values))]

    assert len(contexts) == 5
    for context in contexts:
        assert not context.keys() & {"runAsUser", "fsGroup"}
        assert context["runAsNonRoot"] is True


def test_network_policy_admits_the_listed_sources() -> None:
    """Test pods, load tests and endpoint pickers are of the release, so a policy must let them in."""
    values = DEMO | {
        "networkPolicy.enabled": True,
        "networkPolicy.clients": [{"podSelector": {"matchLabels": {"g": "w"}}}],
    }
    values |= {"networkPolicy.monitoring": [{"podSelector": {"matchLabels": {"m": "p"}}}]}
    rules = find(render(values=values), "NetworkPolicy", "rel-a")["spec"]["ingress"]
    found = {
        rule["ports"][0]["port"]: [
            labels.get("app.kubernetes.io/component", labels)
            for labels in (peer["podSelector"]["matchLabels"] for peer in rule["from"])
        ]
        for rule in rules
    }

    assert found == {
        "http": [{"g": "w"}, "test", "loadtest"],
        "management": [{"m": "p"}, "loadtest", "endpoint-picker"],
    }
