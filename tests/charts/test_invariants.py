"""What holds in every render, whatever the values: one object fits the other, and a pod's life adds up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.charts.chart import NAMESPACE, NEWEST, OLDEST, Object, find, name_of, oldest, pods, render, scenarios

# Each scenario on the oldest Kubernetes that it is for, and on the newest.
CASES = [(path, version) for path in scenarios() for version in sorted({oldest(path), NEWEST})]
# Names that the scenarios give to what must be there already.
EXTERNAL = {
    "keys", "scrape", "hub", "s3", "load", "test-key", "hub-token", "sluice-api-keys", "sluice-test-key",
    "prometheus", "weights", "one", "theirs", "cache", "results", "extra", "shared-picker", "tls",
}  # fmt: skip


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].stem}-{case[1]}")
def objects(request: pytest.FixtureRequest) -> list[Object]:
    path, version = request.param
    return render(path, kubernetes=version)


def _made(objects: list[Object], kind: str) -> set[str]:
    return {one["metadata"]["name"] for one in objects if one["kind"] == kind}


def _containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def _servers(objects: list[Object]) -> list[tuple[Object, Object, Object]]:
    """Owner, pod and container of every server."""
    return [
        (owner, pod, container)
        for owner, pod in pods(objects)
        for container in pod["spec"]["containers"]
        if container["name"] == "server"
    ]


def _settings(objects: list[Object], owner: Object) -> Object:
    settings: Object = yaml.safe_load(find(objects, "ConfigMap", owner["metadata"]["name"])["data"]["sluice.yaml"])
    return settings


def _selects(selector: dict[str, str], objects: list[Object]) -> list[Object]:
    return [pod for _, pod in pods(objects) if selector.items() <= pod["metadata"].get("labels", {}).items()]


def test_no_stream_is_killed_by_the_clock(objects: list[Object]) -> None:
    """Grace covers preStop, the server's own drain by its settings, and a rest."""
    for owner, pod, container in _servers(objects):
        settings = _settings(objects, owner)
        hook = container["lifecycle"]["preStop"]
        wait = hook["sleep"]["seconds"] if "sleep" in hook else int(hook["exec"]["command"][1])
        grace = pod["spec"]["terminationGracePeriodSeconds"]

        assert grace >= wait + settings["server"]["drain_timeout_s"] + 10, name_of(owner)
        for other, workers in pods(objects):
            if workers["spec"]["containers"][0]["name"] == "worker" and other is owner:
                hold = workers["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
                assert int(hold[2]) >= wait + settings["server"]["drain_timeout_s"]
                assert workers["spec"]["terminationGracePeriodSeconds"] > int(hold[2])


def test_an_endpoint_picker_outlives_the_streams_it_chose_for(objects: list[Object]) -> None:
    for owner, pod in pods(objects):
        if owner["metadata"]["name"].endswith("-picker"):
            server = find(objects, "Deployment", owner["metadata"]["name"].removesuffix("-picker"))
            grace = server["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert pod["spec"]["terminationGracePeriodSeconds"] >= grace
            # Nor is there a time without one: while the old one ends, which may take as long, the new one picks.
            assert owner["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_busy_pod_is_taken_out_before_it_is_restarted(objects: list[Object]) -> None:
    for owner, _, container in _servers(objects):
        patience = {
            name: container[f"{name}Probe"]["periodSeconds"] * container[f"{name}Probe"]["failureThreshold"]
            for name in ("startup", "readiness", "liveness")
        }
        paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in patience}

        assert patience["readiness"] < patience["liveness"] < patience["startup"], name_of(owner)
        assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
        if owner["kind"] == "Deployment":
            least = patience["startup"] + owner["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert owner["spec"]["progressDeadlineSeconds"] > least


def test_a_rollout_can_begin(objects: list[Object]) -> None:
    for one in objects:
        if one["kind"] == "Deployment" and one["spec"]["strategy"]["type"] == "RollingUpdate":
            rolling = one["spec"]["strategy"]["rollingUpdate"]
            assert {str(rolling["maxSurge"]), str(rolling["maxUnavailable"])} - {"0", "0%"}, name_of(one)


def test_one_owner_of_the_number_of_replicas(objects: list[Object]) -> None:
    """Else each `helm upgrade` would set back what the autoscaler has decided."""
    scaled = [
        (one["spec"]["scaleTargetRef"]["kind"], one["spec"]["scaleTargetRef"]["name"])
        for one in objects
        if one["kind"] in {"ScaledObject", "HorizontalPodAutoscaler"}
    ]

    assert len(scaled) == len(set(scaled)), "two autoscalers of one target"
    for kind, name in scaled:
        assert "replicas" not in find(objects, kind, name)["spec"]
    for one in objects:
        if one["kind"] in {"Deployment", "LeaderWorkerSet"} and (one["kind"], one["metadata"]["name"]) not in scaled:
            assert one["spec"]["replicas"] >= 1


def test_selectors_select_and_stay(objects: list[Object]) -> None:
    for one in objects:
        match one["kind"]:
            case "Deployment" | "PodDisruptionBudget" | "InferencePool" | "PodMonitor":
                selector = one["spec"]["selector"]["matchLabels"]
            case "Service":
                selector = one["spec"]["selector"]
            case "NetworkPolicy":
                selector = one["spec"]["podSelector"]["matchLabels"]
            case _:
                continue
        found = _selects(selector, objects)

        assert found, f"{name_of(one)} selects nothing"
        # Nothing in it may change with a version, and no other pod may carry all of it.
        assert set(selector) <= {
            "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "sluice/model",
            "sluice/loadtest",
        }  # fmt: skip
        assert selector["app.kubernetes.io/instance"] == "rel"
        if one["kind"] in {"Deployment", "Service", "PodDisruptionBudget", "InferencePool"}:
            assert len(found) == 1, f"{name_of(one)} selects {len(found)} kinds of pod"
        if one["kind"] == "Deployment":
            assert found[0] is one["spec"]["template"]


def test_the_management_port_is_not_for_clients(objects: list[Object]) -> None:
    """Metrics, documents and probes are there, and nothing that clients come through leads there."""
    for owner, _, container in _servers(objects):
        settings = _settings(objects, owner)["server"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"http": settings["port"], "management": settings["management_port"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] == "management", name_of(owner)
    for one in objects:
        spec = one.get("spec", {})
        match one["kind"]:
            case "Service" if one["metadata"]["labels"]["app.kubernetes.io/component"] != "loadtest":
                assert not {"management", 8001} & {port["targetPort"] for port in spec["ports"]}, name_of(one)
            case "InferencePool":
                assert spec["targetPorts"] == [{"number": 8000}]
            case "HTTPRoute":
                named = {backend.get("port") for rule in spec["rules"] for backend in rule["backendRefs"]}
                assert 8001 not in named
            case "PodMonitor":
                assert [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]] == ["management"]
            case "Deployment" if one["metadata"]["name"].endswith("-picker"):
                (picker,) = spec["template"]["spec"]["containers"]
                assert "--model-server-metrics-port=8001" in picker["args"]


def test_ports_exist(objects: list[Object]) -> None:
    def ports(pod: Object) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for one in _containers(pod) for port in one.get("ports", ())}

    for one in objects:
        if one["kind"] == "Service":
            for pod in _selects(one["spec"]["selector"], objects):
                assert all(port["targetPort"] in ports(pod) for port in one["spec"]["ports"]), name_of(one)
        if one["kind"] == "PodMonitor":
            for pod in _selects(one["spec"]["selector"]["matchLabels"], objects):
                assert all(endpoint["port"] in ports(pod) for endpoint in one["spec"]["podMetricsEndpoints"])
        if one["kind"] == "InferencePool":
            for pod in _selects(one["spec"]["selector"]["matchLabels"], objects):
                assert one["spec"]["targetPorts"][0]["number"] in ports(pod).values()
    for _, pod in pods(objects):
        for container in _containers(pod):
            own = {port["name"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container.get(probe, {}).get("httpGet", {}).get("port") in own | {None}
            numbers = [port["containerPort"] for port in container.get("ports", ())]
            assert len(numbers) == len(set(numbers))


def test_named_objects_are_made_or_must_exist(objects: list[Object]) -> None:
    for one in objects:
        for route in one["spec"].get("rules", ()) if one["kind"] == "HTTPRoute" else ():
            for backend in route["backendRefs"]:
                assert backend["name"] in _made(objects, backend["kind"])
        if one["kind"] == "InferencePool":
            assert one["spec"]["endpointPickerRef"]["name"] in _made(objects, "Service") | EXTERNAL
        if one["kind"] == "Ingress":
            for rule in one["spec"]["rules"]:
                service = find(objects, "Service", rule["http"]["paths"][0]["backend"]["service"]["name"])
                port = rule["http"]["paths"][0]["backend"]["service"]["port"]["name"]
                assert port in {each["name"] for each in service["spec"]["ports"]}
    for owner, pod in pods(objects):
        spec = pod["spec"]
        assert spec["serviceAccountName"] in _made(objects, "ServiceAccount") | EXTERNAL
        for volume in spec.get("volumes", ()):
            for kind, key, field in (
                ("ConfigMap", "configMap", "name"),
                ("Secret", "secret", "secretName"),
                ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
            ):
                if key in volume:
                    assert volume[key][field] in _made(objects, kind) | EXTERNAL, (name_of(owner), volume)
        for claim in spec.get("resourceClaims", ()):
            assert claim["resourceClaimTemplateName"] in _made(objects, "ResourceClaimTemplate")
        for container in _containers(pod):
            for variable in container.get("env", ()):
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                assert secret is None or secret["name"] in EXTERNAL, (name_of(owner), variable)


def test_mounts_have_volumes_and_volumes_mounts(objects: list[Object]) -> None:
    for owner, pod in pods(objects):
        volumes = [volume["name"] for volume in pod["spec"].get("volumes", ())]
        mounts = [mount["name"] for one in _containers(pod) for mount in one.get("volumeMounts", ())]

        assert len(volumes) == len(set(volumes)), name_of(owner)
        assert set(volumes) == set(mounts), name_of(owner)
        for container in _containers(pod):
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            assert len(paths) == len(set(paths))


def test_written_paths_are_writable(objects: list[Object]) -> None:
    """With a read-only file system, every folder that a variable names lies on a volume."""
    for _, pod, container in _servers(objects):
        writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        for variable in container["env"]:
            if variable["name"] == "HOME" or variable["name"].endswith(("_HOME", "_DIR", "_ROOT")):
                assert any(f"{variable['value']}/".startswith(f"{path}/") for path in writable), variable
        shm = next(volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume["name"] == "shm")
        assert shm["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_environment_is_set_once_and_is_not_vllms(objects: list[Object]) -> None:
    for _, pod in pods(objects):
        assert pod["spec"]["enableServiceLinks"] is False
        for container in _containers(pod):
            names = [variable["name"] for variable in container.get("env", ())]
            assert len(names) == len(set(names))
            assert [name for name in names if name.startswith("VLLM_")] in ([], ["VLLM_CACHE_ROOT"])


def test_no_container_is_root_or_may_become_it(objects: list[Object]) -> None:
    for owner, pod in pods(objects):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, name_of(owner)
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in _containers(pod):
            if container["image"].startswith("busybox"):
                continue  # a scenario's own
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            gpu = (
                any("gpu" in key for key in container["resources"].get("limits", {}))
                or "claims" in container["resources"]
            )
            init = container["name"] == "wait-for-weights"
            assert context["readOnlyRootFilesystem"] is True or gpu or init, (name_of(owner), container["name"])
        token = pod["spec"]["automountServiceAccountToken"]
        assert token is owner["metadata"]["name"].endswith("-picker")


def test_images_are_pinned(objects: list[Object]) -> None:
    for _, pod in pods(objects):
        for container in _containers(pod):
            assert re.search(r"(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$", container["image"])
            assert not container["image"].endswith(":latest")


def test_memory_has_a_limit_and_cpu_has_none(objects: list[Object]) -> None:
    for owner, pod in pods(objects):
        for container in _containers(pod):
            if container["image"].startswith("busybox"):
                continue
            resources = container["resources"]
            assert "memory" in resources["limits"], name_of(owner)
            assert "cpu" not in resources["limits"]
            assert {"cpu", "memory"} <= resources["requests"].keys()


def test_policies_admit_the_required_sources(objects: list[Object]) -> None:
    """Requests reach one port of the server's and scrapes the other, and only the group reaches a third."""
    for one in objects:
        if one["kind"] != "NetworkPolicy":
            continue
        assert one["spec"]["policyTypes"] == ["Ingress", "Egress"]
        component = one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        rules = one["spec"].get("ingress", [])
        assert all(rule["from"] for rule in rules)
        ports = {"server": ["http", "management"], "endpoint-picker": ["grpc"], "loadtest": ["locust"]}.get(
            component, []
        )
        assert [rule["ports"][0]["port"] for rule in rules if "ports" in rule] == ports
        for rule in rules:
            if "ports" not in rule:
                # All ports, for the group's own pods alone.
                for peer in rule["from"]:
                    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] in {"server", "worker"}
                    assert "sluice/model" in peer["podSelector"]["matchLabels"]
        dns = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
        assert {"ports": dns} in one["spec"]["egress"]


def test_with_policies_every_pod_has_one(objects: list[Object]) -> None:
    """In a namespace that denies what no policy allows, a pod without one could not even ask for a name."""
    policies = [one["spec"]["podSelector"]["matchLabels"] for one in objects if one["kind"] == "NetworkPolicy"]
    for owner, pod in pods(objects) if policies else ():
        labels = pod["metadata"]["labels"].items()
        assert any(selector.items() <= labels for selector in policies), name_of(owner)


def test_pod_security_standard_restricted(objects: list[Object]) -> None:
    """What the admission controller looks at beyond users and capabilities. Image volumes and paths of the node are
    refused there, as the README has it."""
    allowed = {
        "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
    }  # fmt: skip
    for owner, pod in pods(objects):
        spec = pod["spec"]
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}
        kinds = {key for volume in spec.get("volumes", ()) for key in volume if key != "name"}
        assert kinds <= allowed or owner["metadata"]["name"] in {"rel-oci", "rel-node"}, name_of(owner)
        assert spec["securityContext"].get("runAsUser", 1) != 0
        for container in _containers(pod):
            assert not any("hostPort" in port for port in container.get("ports", ()))


def test_nothing_scales_on_cpu_and_every_query_is_one_number(objects: list[Object]) -> None:
    for one in objects:
        if one["kind"] == "HorizontalPodAutoscaler":
            assert {metric["type"] for metric in one["spec"]["metrics"]} == {"External"}
            assert {metric["external"]["target"]["type"] for metric in one["spec"]["metrics"]} == {"AverageValue"}
        if one["kind"] == "ScaledObject":
            assert {trigger["metricType"] for trigger in one["spec"]["triggers"]} == {"AverageValue"}
            for trigger in one["spec"]["triggers"]:
                assert re.match(r"sum\(|\(count\(", trigger["metadata"]["query"])
                assert "metricName" not in trigger["metadata"]


def test_gpus_are_requested_once(objects: list[Object]) -> None:
    for _, pod, container in _servers(objects):
        extended = [key for key in container["resources"]["limits"] if "/" in key]
        claims = container["resources"].get("claims", [])
        assert len(extended) + len(claims) <= 1
        assert bool(claims) == bool(pod["spec"].get("resourceClaims"))


def test_every_object_has_the_releases_namespace_and_labels(objects: list[Object]) -> None:
    # Of the scenario "everything", whose server is called so.
    shared = {"owner": "platform"} if "models-qwen" in _made(objects, "Service") else {}
    for one in objects:
        if one["metadata"]["name"] in {"rel-extra", "rel-text"}:
            continue  # the user's own
        labels = one["metadata"]["labels"]
        assert one["metadata"].get("annotations", {}).items() >= shared.items()
        assert labels["app.kubernetes.io/instance"] == "rel"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert one["metadata"].get("namespace", NAMESPACE) == NAMESPACE
        assert len(one["metadata"]["name"]) <= 63 or one["kind"] == "ConfigMap"
        assert not one["metadata"]["name"].startswith("vllm")


def test_budgets_never_stop_a_node_drain(objects: list[Object]) -> None:
    for one in objects:
        if one["kind"] == "PodDisruptionBudget":
            assert "minAvailable" not in one["spec"]
            assert str(one["spec"]["maxUnavailable"]) not in {"0", "0%"}
            assert one["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_pre_stop_on_old_clusters() -> None:
    path = Path(scenarios()[0])
    for version, key in ((OLDEST, "exec"), (NEWEST, "sleep")):
        _, _, server = _servers(render(path, kubernetes=version))[0]
        assert list(server["lifecycle"]["preStop"]) == [key]


def test_a_route_never_cuts_and_names_its_pool() -> None:
    objects = render(next(path for path in scenarios() if path.stem == "routes-values"))
    rule = find(objects, "HTTPRoute", "rel-picked")["spec"]["rules"][0]

    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert rule["filters"][0]["urlRewrite"]["path"] == {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
    assert rule["backendRefs"] == [
        {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "rel-picked"}
    ]
