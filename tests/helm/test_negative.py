"""What cannot work is refused before anything reaches the cluster, with a sentence that names the value and the fix."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helm.chart import CHART, refusal

HUB = {"models.a.source.repository": "Qwen/Qwen3-8B"}
DEMO = {"models.a.source.type": "demo", "models.a.gpu.count": 0}
SCALED = DEMO | {"models.a.autoscaling.enabled": True}
GROUP = HUB | {
    "models.a.multiNode.enabled": True,
    "models.a.engine.data_parallel_size": 2,
}
ROUTED = DEMO | {"models.a.route.enabled": True, "models.a.route.parentRefs": [{"name": "public"}]}
POOL = ROUTED | {"models.a.inferencePool.enabled": True}
PROTECTED = DEMO | {
    "models.a.settings.server.protect_metrics": True,
    "models.a.apiKeys.existingSecret": "keys",
    "tests.enabled": False,
}

# What is set, the Kubernetes it is set for, and what must be said: the value, and the fix.
SENTENCES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "no model": ({}, "1.34", "models is empty", "Name at least one"),
    "all models off": (HUB | {"models.a.enabled": False}, "1.34", "models is empty", "Name at least one"),
    "long name": (
        HUB | {"fullnameOverride": "a-platform-team-with-a-very-long-name-indeed"},
        "1.34",
        "longer than 40 characters",
        "Set fullnameOverride",
    ),
    "name that no Service can have": (
        HUB | {"fullnameOverride": "llm.prod"},
        "1.34",
        "llm.prod-a cannot be that of a Service",
        "Set fullnameOverride",
    ),
    "name of vLLM": (HUB | {"fullnameOverride": "vllm"}, "1.34", "begins with vllm", "Set fullnameOverride"),
    "hub without a name": ({"models.a": {}}, "1.34", "models.a.source.repository is empty", "Qwen/Qwen3-8B"),
    "download without a revision": (
        HUB | {"models.a.source.type": "download"},
        "1.34",
        "models.a.source.revision is empty",
        "a commit's hash",
    ),
    "pvc without a claim": ({"models.a.source.type": "pvc"}, "1.34", "models.a.source.claim.name", "Set it to the claim"),
    "hostPath without a path": (
        {"models.a.source.type": "hostPath"},
        "1.34",
        "models.a.source.hostPath.path",
        "the model's folder",
    ),
    "image without an image": (
        {"models.a.source.type": "image"},
        "1.34",
        "models.a.source.oci.reference is empty",
        "the image that holds the model",
    ),
    "image volume on an old cluster": (
        {"models.a.source": {"type": "image", "oci": {"reference": "registry.example.com/m:1"}}},
        "1.30",
        "models.a.source.type image needs Kubernetes 1.31",
        "Use pvc or download",
    ),
    "s3 without a URI": ({"models.a.source.type": "s3"}, "1.34", "models.a.source.s3.uri is empty", "s3://bucket/folder"),
    "one-node claim for two replicas": (
        {
            "models.a.source": {"type": "pvc", "claim": {"name": "w", "path": "m", "accessMode": "ReadWriteOnce"}},
            "models.a.replicas": 2,
        },
        "1.34",
        "up to 2 pods cannot mount a ReadWriteOnce claim",
        "Set models.a.source.claim.accessMode to ReadWriteMany",
    ),
    "one-node claim and an autoscaler": (
        {
            "models.a.source": {"type": "pvc", "claim": {"name": "w", "path": "m", "accessMode": "ReadWriteOncePod"}},
            "models.a.autoscaling.enabled": True,
        },
        "1.34",
        "up to 4 pods cannot mount a ReadWriteOncePod claim",
        "or run one replica",
    ),
    "cache without a claim": (
        HUB | {"models.a.cache.type": "pvc"},
        "1.34",
        "models.a.cache.claimName is empty",
        "cache.type to emptyDir",
    ),
    "one-node cache for two replicas": (
        HUB | {"models.a.cache": {"type": "pvc", "claimName": "c", "accessMode": "ReadWriteOnce"}, "models.a.replicas": 2},
        "1.34",
        "up to 2 pods cannot mount a ReadWriteOnce cache",
        "Set models.a.cache.type to emptyDir",
    ),
    "argument with dashes": (
        HUB | {"models.a.engine": {"max-model-len": 8192}},
        "1.34",
        "models.a.engine.max-model-len",
        "max_model_len",
    ),
    "argument of the chart's": (
        HUB | {"models.a.engine": {"data_parallel_size_local": 1}},
        "1.34",
        "models.a.engine.data_parallel_size_local",
        "Use source, servedNames and multiNode",
    ),
    "too few GPUs": (
        HUB | {"models.a.engine": {"tensor_parallel_size": 2}},
        "1.34",
        "models.a.gpu.count is 1",
        "need 2 per pod. Make them equal",
    ),
    "too many GPUs": (HUB | {"models.a.gpu.count": 8}, "1.34", "models.a.gpu.count is 8", "Make them equal"),
    "engine over a fraction of a GPU": (
        GROUP
        | {
            "models.a.multiNode.mode": "oneEngine",
            "models.a.multiNode.size": 2,
            "models.a.engine": {"tensor_parallel_size": 3},
        },
        "1.34",
        "models.a.gpu.count is 1",
        "Make them equal",
    ),
    "DRA on an old cluster": (
        HUB | {"models.a.gpu.dra.enabled": True},
        "1.33",
        "models.a.gpu.dra.enabled needs Kubernetes 1.34",
        "Set it to false",
    ),
    "DRA without GPUs": (
        DEMO | {"models.a.gpu.dra.enabled": True},
        "1.34",
        "models.a.gpu.count is 0",
        "Set one of them",
    ),
    "no memory beside /dev/shm": (
        HUB | {"models.a.sharedMemory.size": "30Gi"},
        "1.34",
        "models.a.resources.limits.memory is 32Gi",
        "or lower sharedMemory.size",
    ),
    "request above the limit": (
        HUB | {"models.a.resources.requests.memory": "40G"},
        "1.34",
        "models.a.resources.requests.memory is 40G",
        "Lower it or raise the limit",
    ),
    "grace period too short": (
        HUB | {"models.a.terminationGracePeriodSeconds": 629},
        "1.34",
        "models.a.terminationGracePeriodSeconds is 629",
        "Leave it out",
    ),
    "inverted probes": (
        HUB | {"models.a.probes": {"liveness": {"failureThreshold": 3}, "readiness": {"failureThreshold": 60}}},
        "1.34",
        "models.a.probes.liveness",
        "Raise liveness.failureThreshold",
    ),
    "rollout given up too early": (
        HUB | {"models.a.rollout.progressDeadlineSeconds": 600},
        "1.34",
        "models.a.rollout.progressDeadlineSeconds is 600",
        "Leave it out",
    ),
    "rollout that cannot begin": (
        HUB | {"models.a.rollout.maxUnavailable": 0},
        "1.34",
        "models.a.rollout.maxSurge and maxUnavailable are both 0",
        "Set maxUnavailable to 1",
    ),
    "rollout that cannot begin, in shares": (
        HUB | {"models.a.rollout": {"maxUnavailable": "0%", "maxSurge": "0%"}},
        "1.34",
        "are both 0",
        "Set maxUnavailable to 1",
    ),
    "more at least than at most": (
        SCALED | {"models.a.autoscaling.minReplicas": 5},
        "1.34",
        "models.a.autoscaling.minReplicas is 5",
        "raise maxReplicas",
    ),
    "zero with nobody in front": (
        SCALED | {"models.a.autoscaling.minReplicas": 0},
        "1.34",
        "models.a.autoscaling.minReplicas is 0",
        "Set it to 1",
    ),
    "zero with the HPA of an old cluster": (
        SCALED | {"models.a.autoscaling": {"enabled": True, "minReplicas": 0, "allowZero": True, "type": "hpa"}},
        "1.36",
        "needs Kubernetes 1.37",
        "Use type keda",
    ),
    "nothing to scale on": (
        SCALED | {"models.a.autoscaling.targets": {"waitingRequests": None, "runningRequests": 0, "kvCacheUsage": None}},
        "1.34",
        "models.a.autoscaling.targets leaves nothing",
        "Set waitingRequests",
    ),
    "KEDA's authentication without its mode": (
        SCALED | {"models.a.autoscaling.keda.authenticationRef": "prometheus"},
        "1.34",
        "authenticationRef is ignored by KEDA without authModes",
        "Set it",
    ),
    "KEDA's mode without authentication": (
        SCALED | {"models.a.autoscaling.keda.authModes": "bearer"},
        "1.34",
        "authModes needs authenticationRef",
        "Set both or none",
    ),
    "group of one": (
        GROUP | {"models.a.multiNode.size": 1},
        "1.34",
        "models.a.multiNode.size is 1",
        "set multiNode.enabled to false",
    ),
    "engines that do not divide": (
        GROUP | {"models.a.engine.data_parallel_size": 3, "models.a.gpu.count": 1},
        "1.34",
        "models.a.engine.data_parallel_size is 3",
        "a multiple of multiNode.size",
    ),
    "front ends in a group": (
        GROUP | {"models.a.settings.server.workers": 2},
        "1.34",
        "models.a.settings.server.workers is 2",
        "Set it to 1",
    ),
    "demo in a group": (
        DEMO | {"models.a.multiNode.enabled": True},
        "1.34",
        "models.a.source.type demo does not run on several machines",
        "Set multiNode.enabled to false",
    ),
    "recreated groups": (
        GROUP | {"models.a.rollout.type": "Recreate"},
        "1.34",
        "models.a.rollout.type is Recreate",
        "Set it to that",
    ),
    "route to no gateway": (DEMO | {"models.a.route.enabled": True}, "1.34", "models.a.route.parentRefs", "Name the gateway"),
    "ingress without a host": (DEMO | {"models.a.ingress.enabled": True}, "1.34", "models.a.ingress.host", "Set it"),
    "picker without an image": (
        POOL,
        "1.34",
        "models.a.inferencePool.endpointPicker.image is empty",
        "create to false",
    ),
    "picker that nobody asks": (
        DEMO | {"models.a.inferencePool": {"enabled": True, "endpointPicker": {"image": "picker:1"}}},
        "1.34",
        "without route.enabled",
        "Enable the route",
    ),
    "somebody's picker without a name": (
        POOL | {"models.a.inferencePool.endpointPicker.create": False},
        "1.34",
        "models.a.inferencePool.endpointPicker.serviceName is empty",
        "or create to true",
    ),
    "picker without metrics": (
        POOL | PROTECTED | {"models.a.inferencePool.endpointPicker.image": "picker:1"},
        "1.34",
        "models.a.settings.server.protect_metrics keeps the endpoint picker",
        "use networkPolicy instead",
    ),
    "protection without keys": (
        DEMO | {"models.a.settings.server.protect_metrics": True},
        "1.34",
        "models.a.settings.server.protect_metrics needs API keys",
        "Set apiKeys.existingSecret",
    ),
    "Prometheus without a key": (
        PROTECTED | {"metrics.podMonitor.enabled": True},
        "1.34",
        "models.a.settings.server.protect_metrics keeps Prometheus out",
        "Set metrics.podMonitor.bearerToken.existingSecret",
    ),
    "test without a key": (
        DEMO | {"models.a.apiKeys.existingSecret": "keys"},
        "1.34",
        "helm test needs a key",
        "Set tests.apiKey.existingSecret",
    ),
    "policy that shuts everybody out": (
        DEMO | {"networkPolicy.enabled": True},
        "1.34",
        "networkPolicy.clients is empty",
        "Name the gateway's namespace",
    ),
    "policy that shuts Prometheus out": (
        DEMO | {"networkPolicy": {"enabled": True, "clients": [{"podSelector": {}}]}, "metrics.podMonitor.enabled": True},
        "1.34",
        "networkPolicy.monitoring is empty",
        "Name its namespace",
    ),
    "two models behind one door": (
        {"modelDefaults": {"source": {"type": "demo"}, "gpu": {"count": 0}, "route": {"enabled": True, "parentRefs": [{"name": "g"}]}}}
        | {"models.a": {}, "models.b": {}},
        "1.34",
        "models.a and models.b would answer on the same route every host /",
        "Set another host name",
    ),
    "two models behind one ingress": (
        {"modelDefaults": {"source": {"type": "demo"}, "gpu": {"count": 0}, "ingress": {"enabled": True, "host": "h.example.com"}}}
        | {"models.a": {}, "models.b": {}},
        "1.34",
        "models.a and models.b would answer on the same ingress h.example.com /",
        "Set another host name",
    ),
    "load test without an aim": (
        DEMO | {"models.b": {"source": {"type": "demo"}, "gpu": {"count": 0}}, "loadTest.enabled": True},
        "1.34",
        "loadTest.model is empty",
        "Set it to one of a, b",
    ),
    "load test of nothing": (
        DEMO | {"loadTest.enabled": True, "loadTest.model": "z"},
        "1.34",
        "loadTest.model is z",
        "Set it to one of a",
    ),
}  # fmt: skip

# What the schema refuses: what is set, and the path that Helm must name.
SCHEMA: dict[str, tuple[dict[str, Any], str]] = {
    "unknown at the top": ({"model": {}}, "Additional property model is not allowed"),
    "unknown in a model": ({"models.a.replica": 2}, "models.a: Additional property replica is not allowed"),
    "unknown in the defaults": ({"modelDefaults.gpus": 2}, "modelDefaults: Additional property gpus is not allowed"),
    "unknown deep down": (
        {"models.a.probes.liveness.periodSecond": 2},
        "models.a.probes.liveness: Additional property periodSecond is not allowed",
    ),
    "unknown setting": (
        {"models.a.settings.admission.max_concurent": 2},
        "models.a.settings.admission: Additional property max_concurent is not allowed",
    ),
    "setting of the chart's": (
        {"models.a.settings.server.drain_timeout_s": 2},
        "models.a.settings.server: Additional property drain_timeout_s is not allowed",
    ),
    "unknown metric": ({"metrics.serviceMonitor": {}}, "metrics: Additional property serviceMonitor is not allowed"),
    "models as a list": ({"models": [{"name": "a"}]}, "models: Invalid type. Expected: object, given: array"),
    "name of a model": ({"models": {"Qwen3.8B": {}}}, 'models: Property name of "Qwen3.8B" does not match'),
    "word for a number": ({"models.a.replicas": "two"}, "models.a.replicas: Invalid type. Expected: integer"),
    "unknown source": ({"models.a.source.type": "ftp"}, "models.a.source.type must be one of"),
    "latest image": ({"models.a.image.tag": "latest"}, "models.a.image.tag: Must not validate the schema (not)"),
    "latest picker": (
        {"models.a.inferencePool.endpointPicker.image": "epp:latest"},
        "models.a.inferencePool.endpointPicker.image: Must not validate the schema (not)",
    ),
    "budget of none": (
        {"models.a.podDisruptionBudget.maxUnavailable": 0},
        "models.a.podDisruptionBudget.maxUnavailable: Must not validate the schema (not)",
    ),
    "no such bucket": (
        {"models.a.autoscaling.targets.slowSeconds": 2.5},
        "models.a.autoscaling.targets.slowSeconds must be one of",
    ),
    "digest": ({"models.a.image.digest": "sha256:1"}, "models.a.image.digest: Does not match pattern"),
    "quantity": ({"models.a.resources.limits.memory": "32 GB"}, "models.a.resources.limits.memory"),
    "no time to tear down": ({"models.a.drain.teardownSeconds": 0}, "models.a.drain.teardownSeconds: Must be greater"),
    "environment variable of no name": ({"models.a.env": [{"value": "1"}]}, "models.a.env.0: name is required"),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_refused_with_our_sentence(name: str) -> None:
    values, kubernetes, what, fix = SENTENCES[name]
    said = refusal(values=values, kubernetes=kubernetes)

    assert "execution error" in said, said
    assert what in said
    assert fix in said


@pytest.mark.parametrize("name", SCHEMA)
def test_refused_by_the_schema(name: str) -> None:
    values, what = SCHEMA[name]
    said = refusal(values=values)

    assert "values don't meet the specifications of the schema" in said
    assert what in said


def test_every_refusal_of_the_chart_is_tried() -> None:
    """Each sentence of the chart, without its placeholders, is in something that was said above."""
    text = (CHART / "templates" / "_validate.tpl").read_text(encoding="utf-8")
    sentences = re.findall(r'fail (?:\(printf )?"([^"]+)"', text)
    said = [refusal(values=values, kubernetes=kubernetes) for values, kubernetes, _, _ in SENTENCES.values()]

    assert len(sentences) == text.count("{{ fail ")
    for sentence in sentences:
        parts = re.split("%[sdvq]", sentence)
        assert any(all(part in one for part in parts) for one in said), sentence
