{{/* The refusals, each with a sentence that names the value and the fix. Takes root and m, a merged model. */}}
{{- define "sluice.validate" -}}
{{- $root := .root -}}
{{- $m := .m -}}
{{- $is := $m.is -}}
{{- $at := printf "models.%s" $is.key -}}
{{- $minor := int (regexReplaceAll "^v?1[.]([0-9]+).*$" $root.Capabilities.KubeVersion.Version "${1}") -}}

{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $is.name) -}}
  {{- fail (printf "%s: the name %s cannot be that of a Service: only a-z, 0-9 and -, beginning with a letter. Set fullnameOverride." $at $is.name) -}}
{{- end -}}
{{- if gt (len $is.name) 40 -}}
  {{- fail (printf "%s: the name %s is longer than 40 characters, which leaves no room for what Kubernetes adds. Set fullnameOverride to something shorter." $at $is.name) -}}
{{- end -}}
{{- if hasPrefix "vllm" $is.name -}}
  {{- fail (printf "%s: the name %s begins with vllm; a Service of that name gives every pod of the namespace variables that vLLM takes for its settings. Set fullnameOverride to something else." $at $is.name) -}}
{{- end -}}

{{- /* The model's source. */ -}}
{{- $source := $m.source -}}
{{- if and (has $source.type (list "hub" "download")) (not $source.repository) -}}
  {{- fail (printf "%s.source.repository is empty. Set it to a name on the hub, such as Qwen/Qwen3-8B, or %s.source.type to demo." $at $at) -}}
{{- end -}}
{{- if and (eq $source.type "download") (not $source.revision) -}}
  {{- fail (printf "%s.source.revision is empty, and with source.type download it names the folder that is filled once. Set it to a commit's hash or to main." $at) -}}
{{- end -}}
{{- if and (eq $source.type "download") (ne $source.claim.accessMode "ReadWriteMany") -}}
  {{- fail (printf "%s.source.claim.accessMode is %s, but the Job that downloads and the pods that wait for it mount the claim at the same time, perhaps on two machines. Set it to ReadWriteMany, or use source.type hub with cache.type pvc." $at $source.claim.accessMode) -}}
{{- end -}}
{{- if and (eq $source.type "pvc") (not $source.claim.name) -}}
  {{- fail (printf "%s.source.claim.name is empty. Set it to the claim with the weights." $at) -}}
{{- end -}}
{{- if and (eq $source.type "hostPath") (not $source.hostPath.path) -}}
  {{- fail (printf "%s.source.hostPath.path is empty. Set it to the model's folder on the nodes." $at) -}}
{{- end -}}
{{- if eq $source.type "image" -}}
{{- if lt $minor 31 -}}
  {{- fail (printf "%s.source.type image needs Kubernetes 1.31, and this is %s. Use pvc or download." $at $root.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if not $source.oci.reference -}}
  {{- fail (printf "%s.source.oci.reference is empty. Set it to the image that holds the model." $at) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $source.type "s3") (not $source.s3.uri) -}}
  {{- fail (printf "%s.source.s3.uri is empty. Set it to s3://bucket/folder." $at) -}}
{{- end -}}
{{- $pods := mul $is.most $is.size -}}
{{- if and (eq $source.type "pvc") (gt $pods 1) (has $source.claim.accessMode (list "ReadWriteOnce" "ReadWriteOncePod")) -}}
  {{- fail (printf "%s: up to %d pods cannot mount a %s claim. Set %s.source.claim.accessMode to ReadWriteMany or ReadOnlyMany if the claim is that, or run one replica." $at $pods $source.claim.accessMode $at) -}}
{{- end -}}
{{- if eq $m.cache.type "pvc" -}}
{{- if not $m.cache.claimName -}}
  {{- fail (printf "%s.cache.claimName is empty. Set it, or %s.cache.type to emptyDir." $at $at) -}}
{{- end -}}
{{- if and (gt $pods 1) (has $m.cache.accessMode (list "ReadWriteOnce" "ReadWriteOncePod")) -}}
  {{- fail (printf "%s: up to %d pods cannot mount a %s cache. Set %s.cache.type to emptyDir, or use a ReadWriteMany claim." $at $pods $m.cache.accessMode $at) -}}
{{- end -}}
{{- end -}}

{{- /* Parallelism, devices and memory. */ -}}
{{- range $name := keys $m.engine | sortAlpha -}}
{{- if contains "-" $name -}}
  {{- fail (printf "%s.engine.%s: write vLLM's arguments with underscores, %s." $at $name (replace "-" "_" $name)) -}}
{{- end -}}
{{- if has $name (list "model" "served_model_name" "revision" "tokenizer_revision" "data_parallel_size_local" "data_parallel_address" "data_parallel_rpc_port" "data_parallel_start_rank" "data_parallel_rank" "nnodes" "node_rank" "master_addr" "master_port") -}}
  {{- fail (printf "%s.engine.%s is set by the chart. Use source, servedNames and multiNode." $at $name) -}}
{{- end -}}
{{- end -}}
{{- if and $m.multiNode.enabled (lt (int $m.multiNode.size) 2) -}}
  {{- fail (printf "%s.multiNode.size is %d. A group has two pods or more; for one, set multiNode.enabled to false." $at (int $m.multiNode.size)) -}}
{{- end -}}
{{- $gpus := int $m.gpu.count -}}
{{- if and (gt $gpus 0) (not $m.settings.synthetic.enabled) (or (ne $gpus (int $is.gpusNeeded)) (not $is.gpusNeededExactly)) -}}
  {{- fail (printf "%s.gpu.count is %d, but tensor_parallel_size x pipeline_parallel_size x data_parallel_size of %s.engine need %d per pod. Make them equal." $at $gpus $at (int $is.gpusNeeded)) -}}
{{- end -}}
{{- if $m.gpu.dra.enabled -}}
{{- if lt $minor 34 -}}
  {{- fail (printf "%s.gpu.dra.enabled needs Kubernetes 1.34, and this is %s. Set it to false to request %s." $at $root.Capabilities.KubeVersion.Version $m.gpu.resource) -}}
{{- end -}}
{{- if eq $gpus 0 -}}
  {{- fail (printf "%s.gpu.dra.enabled requests GPUs, but %s.gpu.count is 0. Set one of them." $at $at) -}}
{{- end -}}
{{- end -}}
{{- $memory := include "sluice.bytes" $m.resources.limits.memory | int64 -}}
{{- $spare := ternary "8Gi" "2Gi" (gt $gpus 0) -}}
{{- if lt $memory (add (include "sluice.bytes" $is.shm | int64) (include "sluice.bytes" $spare | int64)) -}}
  {{- fail (printf "%s.resources.limits.memory is %v, which is less than /dev/shm (%s, counted against it) and %s for the processes. Raise it, or lower sharedMemory.size." $at $m.resources.limits.memory $is.shm $spare) -}}
{{- end -}}
{{- if gt (include "sluice.bytes" $m.resources.requests.memory | int64) $memory -}}
  {{- fail (printf "%s.resources.requests.memory is %v, above the limit of %v. Lower it or raise the limit." $at $m.resources.requests.memory $m.resources.limits.memory) -}}
{{- end -}}

{{- /* A pod's life. */ -}}
{{- if lt (int $is.terminationGracePeriod) (int $is.grace) -}}
  {{- fail (printf "%s.terminationGracePeriodSeconds is %d, less than drain.preStopSeconds + drain.timeoutSeconds + drain.teardownSeconds = %d: streams would be killed. Leave it out, or lower drain.timeoutSeconds." $at (int $is.terminationGracePeriod) (int $is.grace)) -}}
{{- end -}}
{{- $p := $m.probes -}}
{{- if le (mul (int $p.liveness.periodSeconds) (int $p.liveness.failureThreshold)) (mul (int $p.readiness.periodSeconds) (int $p.readiness.failureThreshold)) -}}
  {{- fail (printf "%s.probes.liveness fails no later than probes.readiness, so a busy pod would be restarted before it stops getting requests. Raise liveness.failureThreshold." $at) -}}
{{- end -}}
{{- if and $m.rollout.progressDeadlineSeconds (lt (int $m.rollout.progressDeadlineSeconds) (int $is.progressDeadline)) -}}
  {{- fail (printf "%s.rollout.progressDeadlineSeconds is %d, less than the %d that draining one pod and starting the next may take. Leave it out, or lower drain.timeoutSeconds or probes.startup.failureThreshold." $at (int $m.rollout.progressDeadlineSeconds) (int $is.progressDeadline)) -}}
{{- end -}}
{{- if and (eq $m.rollout.type "RollingUpdate") (has (toString $m.rollout.maxSurge) (list "0" "0%")) (has (toString $m.rollout.maxUnavailable) (list "0" "0%")) -}}
  {{- fail (printf "%s.rollout.maxSurge and maxUnavailable are both 0, so an update could never begin. Set maxUnavailable to 1, or maxSurge to 1 where a GPU is spare." $at) -}}
{{- end -}}

{{- /* Scaling. */ -}}
{{- $a := $m.autoscaling -}}
{{- if $a.enabled -}}
{{- if gt (int $a.minReplicas) (int $a.maxReplicas) -}}
  {{- fail (printf "%s.autoscaling.minReplicas is %d, above maxReplicas, %d. Lower it or raise maxReplicas." $at (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- end -}}
{{- if and (eq (int $a.minReplicas) 0) (not $a.allowZero) -}}
  {{- fail (printf "%s.autoscaling.minReplicas is 0, and without a pod no request is accepted that could cause a scale-up. Set it to 1, or autoscaling.allowZero if something in front holds requests." $at) -}}
{{- end -}}
{{- if and (eq (int $a.minReplicas) 0) (eq $a.type "hpa") (lt $minor 37) -}}
  {{- fail (printf "%s.autoscaling.minReplicas 0 with type hpa needs Kubernetes 1.37, and this is %s. Use type keda." $at $root.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (kindIs "invalid" $a.targets.waitingRequests) (eq (int $is.running) 0) (or (eq $a.type "hpa") (and (kindIs "invalid" $a.targets.kvCacheUsage) (kindIs "invalid" $a.targets.slowShare))) -}}
  {{- fail (printf "%s.autoscaling.targets leaves nothing to scale on. Set waitingRequests or runningRequests." $at) -}}
{{- end -}}
{{- if and $a.keda.authModes (not $a.keda.authenticationRef) -}}
  {{- fail (printf "%s.autoscaling.keda.authModes needs authenticationRef, the TriggerAuthentication with the credentials. Set both or none." $at) -}}
{{- end -}}
{{- if and $a.keda.authenticationRef (not $a.keda.authModes) -}}
  {{- fail (printf "%s.autoscaling.keda.authenticationRef is ignored by KEDA without authModes. Set it, for example to bearer." $at) -}}
{{- end -}}
{{- end -}}

{{- /* Several machines. */ -}}
{{- if $m.multiNode.enabled -}}
{{- if and (eq $m.multiNode.mode "dataParallel") (ne 0 (int (mod $is.engines $is.size))) -}}
  {{- fail (printf "%s.engine.data_parallel_size is %d, which %d pods cannot share evenly. Make it a multiple of multiNode.size." $at (int $is.engines) (int $is.size)) -}}
{{- end -}}
{{- if has (int $m.multiNode.port) (list 8000 8001) -}}
  {{- fail (printf "%s.multiNode.port is %d, which the server listens on itself (8000 for clients, 8001 for metrics and probes). Choose another." $at (int $m.multiNode.port)) -}}
{{- end -}}
{{- if gt (int $m.settings.server.workers) 1 -}}
  {{- fail (printf "%s.settings.server.workers is %d, but several front-end processes cannot share engines on other machines. Set it to 1." $at (int $m.settings.server.workers)) -}}
{{- end -}}
{{- if eq $source.type "demo" -}}
  {{- fail (printf "%s.source.type demo does not run on several machines. Set multiNode.enabled to false." $at) -}}
{{- end -}}
{{- if ne $m.rollout.type "RollingUpdate" -}}
  {{- fail (printf "%s.rollout.type is %s, but groups of pods only have RollingUpdate. Set it to that." $at $m.rollout.type) -}}
{{- end -}}
{{- end -}}

{{- /* The ways in. */ -}}
{{- if and $m.route.enabled (not $m.route.parentRefs) -}}
  {{- fail (printf "%s.route.parentRefs is empty. Name the gateway: [{name: my-gateway, namespace: gateways}]." $at) -}}
{{- end -}}
{{- if and $m.ingress.enabled (not $m.ingress.host) -}}
  {{- fail (printf "%s.ingress.host is empty. Set it to the host name that clients use." $at) -}}
{{- end -}}
{{- $idle := include "sluice.balancerIdle" $m | int -}}
{{- if ge $idle (int $m.settings.server.idle_timeout_s) -}}
  {{- fail (printf "%s.settings.server.idle_timeout_s is %v, but the load balancer keeps idle connections for %d s and would sometimes send a request into one that the server is closing (502). Raise it above that, or lower idle_timeout.timeout_seconds." $at $m.settings.server.idle_timeout_s $idle) -}}
{{- end -}}
{{- $picker := $m.inferencePool.endpointPicker -}}
{{- if $m.inferencePool.enabled -}}
{{- if and $picker.create (not $picker.image) -}}
  {{- fail (printf "%s.inferencePool.endpointPicker.image is empty. Set it to a release of llm-d's endpoint picker, or create to false and serviceName to one that runs." $at) -}}
{{- end -}}
{{- if and $picker.create (not $m.route.enabled) -}}
  {{- fail (printf "%s.inferencePool.enabled without route.enabled: nothing would query the endpoint picker. Enable the route." $at) -}}
{{- end -}}
{{- if and (not $picker.create) (not $picker.serviceName) -}}
  {{- fail (printf "%s.inferencePool.endpointPicker.serviceName is empty. Set it, or create to true." $at) -}}
{{- end -}}
{{- if $m.settings.server.protect_metrics -}}
  {{- fail (printf "%s.settings.server.protect_metrics prevents the endpoint picker from reading its metrics. Set it to false, and use networkPolicy instead." $at) -}}
{{- end -}}
{{- end -}}
{{- if and $m.settings.server.protect_metrics (not $m.apiKeys.existingSecret) -}}
  {{- fail (printf "%s.settings.server.protect_metrics needs API keys. Set apiKeys.existingSecret." $at) -}}
{{- end -}}
{{- if and $m.settings.server.protect_metrics $root.Values.metrics.podMonitor.enabled (not $root.Values.metrics.podMonitor.bearerToken.existingSecret) -}}
  {{- fail (printf "%s.settings.server.protect_metrics prevents Prometheus from scraping. Set metrics.podMonitor.bearerToken.existingSecret to a Secret with an API key." $at) -}}
{{- end -}}
{{- if and $m.apiKeys.existingSecret $root.Values.tests.enabled (not $root.Values.tests.apiKey.existingSecret) -}}
  {{- fail (printf "%s.apiKeys.existingSecret is set, so helm test needs a key, too. Set tests.apiKey.existingSecret, or tests.enabled to false." $at) -}}
{{- end -}}
{{- end }}

{{/* Checks of the release as a whole. */}}
{{- define "sluice.validateRelease" -}}
{{- $enabled := include "sluice.enabled" . | fromYamlArray -}}
{{- if not $enabled -}}
  {{- fail "models is empty. Name at least one, such as --set models.qwen.source.repository=Qwen/Qwen3-8B, or use the chart's values-cpu.yaml." -}}
{{- end -}}
{{- range $key := $enabled -}}
{{- if hasPrefix "dashboard-" $key -}}
  {{- fail (printf "models.%s: dashboards of the release have this name. Choose another name, such as %s." $key (trimPrefix "dashboard-" $key)) -}}
{{- end -}}
{{- range $suffix := list "picker" "workers" "download" "test" -}}
{{- $taken := printf "%s-%s" $key $suffix -}}
{{- if has $taken $enabled -}}
  {{- fail (printf "models.%s: objects of models.%s may have this name. Choose another name for one of them." $taken $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.clients) -}}
  {{- fail "networkPolicy.clients is empty, so nobody could send a request. Name the gateway's namespace, or set networkPolicy.enabled to false." -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled .Values.metrics.podMonitor.enabled (not .Values.networkPolicy.monitoring) -}}
  {{- fail "networkPolicy.monitoring is empty, so Prometheus could not scrape what metrics.podMonitor asks for. Name its namespace." -}}
{{- end -}}
{{- $addresss := dict -}}
{{- range $key := $enabled -}}
{{- $m := include "sluice.model" (dict "root" $ "key" $key) | fromYaml -}}
{{- $found := list -}}
{{- if $m.route.enabled -}}
{{- range $host := $m.route.hostnames | default (list "every host") }}{{ $found = append $found (printf "route %s %s %s" $host $m.route.pathPrefix (toJson $m.route.headers)) }}{{ end -}}
{{- end -}}
{{- if $m.ingress.enabled }}{{ $found = append $found (printf "ingress %s %s" $m.ingress.host $m.ingress.path) }}{{ end -}}
{{- range $address := $found -}}
{{- with get $addresss $address -}}
  {{- fail (printf "models.%s and models.%s would answer on the same %s. Set another host name, route.pathPrefix or route.headers for one of them." . $key $address) -}}
{{- end -}}
{{- $_ := set $addresss $address $key -}}
{{- end -}}
{{- end -}}
{{- if .Values.loadTest.enabled -}}
{{- if and (not .Values.loadTest.url) (not .Values.loadTest.model) (gt (len $enabled) 1) -}}
  {{- fail (printf "loadTest.model is empty, and there are several models. Set it to one of %s." (join ", " $enabled)) -}}
{{- end -}}
{{- if and .Values.loadTest.model (not (has .Values.loadTest.model $enabled)) -}}
  {{- fail (printf "loadTest.model is %s, which is not a model of this release. Set it to one of %s." .Values.loadTest.model (join ", " $enabled)) -}}
{{- end -}}
{{- $key := .Values.loadTest.model | default (first $enabled) -}}
{{- $m := include "sluice.model" (dict "root" $ "key" $key) | fromYaml -}}
{{- if and (not .Values.loadTest.url) $m.apiKeys.existingSecret (not .Values.loadTest.apiKey.existingSecret) -}}
  {{- fail (printf "models.%s.apiKeys.existingSecret is set, so the load test needs a key, too. Set loadTest.apiKey.existingSecret." $key) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The keys of the models that are not switched off. */}}
{{- define "sluice.enabled" -}}
{{- $enabled := list -}}
{{- range $key := keys .Values.models | sortAlpha -}}
{{- $own := get $.Values.models $key | default dict -}}
{{- if ternary $own.enabled $.Values.modelDefaults.enabled (hasKey $own "enabled") }}{{ $enabled = append $enabled $key }}{{ end -}}
{{- end -}}
{{- toYaml $enabled -}}
{{- end }}
