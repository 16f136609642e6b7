{{/* A model's values: its own merged over the defaults, checked, and under `is` the values derived from them.
     Takes root and key; gives YAML. Every template gets its model from here, so nothing unchecked is ever rendered. */}}
{{- define "sluice.model" -}}
{{- $root := .root -}}
{{- $own := get $root.Values.models .key | default dict -}}
{{- $m := mustMergeOverwrite (deepCopy $root.Values.modelDefaults) (deepCopy $own) -}}
{{- $e := $m.engine -}}
{{- $gpus := int $m.gpu.count -}}
{{- $size := ternary (int $m.multiNode.size) 1 $m.multiNode.enabled -}}
{{- $spread := and $m.multiNode.enabled (eq $m.multiNode.mode "dataParallel") -}}
{{- $shard := mul (int (get $e "tensor_parallel_size" | default 1)) (int (get $e "pipeline_parallel_size" | default 1)) -}}
{{- $engines := int (get $e "data_parallel_size" | default (ternary $size 1 $spread)) -}}
{{- $here := int (ternary (div $engines $size) $engines $spread) -}}
{{- $is := dict -}}
{{- $_ := set $is "key" .key -}}
{{- $_ := set $is "name" (printf "%s-%s" (include "sluice.fullname" $root) .key) -}}
{{- $_ := set $is "size" $size -}}
{{- $_ := set $is "engines" $engines -}}
{{- $_ := set $is "enginesPerPod" $here -}}
{{- $_ := set $is "gpusNeeded" (ternary (mul $shard $here) (div (mul $shard $engines) $size) $spread) -}}
{{- $_ := set $is "gpusNeededExactly" (or $spread (eq 0 (int (mod (mul $shard $engines) $size)))) -}}
{{- $_ := set $is "grace" (add (int $m.drain.preStopSeconds) (int $m.drain.timeoutSeconds) (int $m.drain.teardownSeconds)) -}}
{{- $_ := set $is "startup" (mul (int $m.probes.startup.periodSeconds) (int $m.probes.startup.failureThreshold)) -}}
{{- $grace := $m.terminationGracePeriodSeconds | default $is.grace -}}
{{- $_ := set $is "terminationGracePeriod" (int $grace) -}}
{{- $_ := set $is "progressDeadline" (add (int $grace) $is.startup (int $m.rollout.minReadySeconds) 60) -}}
{{- $scaled := $m.autoscaling.enabled -}}
{{- $_ := set $is "least" (int (ternary $m.autoscaling.minReplicas $m.replicas $scaled)) -}}
{{- $_ := set $is "most" (int (ternary $m.autoscaling.maxReplicas $m.replicas $scaled)) -}}
{{- $running := $m.autoscaling.targets.runningRequests -}}
{{- $_ := set $is "running" (ternary (div (mul 8 (int $m.settings.admission.max_concurrent)) 10) (int $running) (kindIs "invalid" $running)) -}}
{{- $_ := set $is "selector" ($m.autoscaling.keda.selector | default (printf "job=%q,namespace=%q,app_kubernetes_io_instance=%q,sluice_model=%q" "sluice" $root.Release.Namespace $root.Release.Name .key)) -}}
{{- $_ := set $is "offline" (has $m.source.type (list "pvc" "hostPath" "image" "download" "demo")) -}}
{{- $_ := set $is "claim" ($m.source.claim.name | default (printf "%s-weights" $is.name)) -}}
{{- $_ := set $is "model" (include "sluice.modelArgument" $m) -}}
{{- $names := $m.servedNames -}}
{{- if and (not $names) (ne $m.source.type "demo") -}}
{{- $names = list ($m.source.repository | default .key) -}}
{{- end -}}
{{- $_ := set $is "servedNames" $names -}}
{{- $_ := set $is "shm" ($m.sharedMemory.size | default (ternary "16Gi" "1Gi" (gt $gpus 1))) -}}
{{- $_ := set $is "readOnly" (ternary (eq $gpus 0) $m.readOnlyRootFilesystem (kindIs "invalid" $m.readOnlyRootFilesystem)) -}}
{{- /* A claim template cannot be changed, so other devices need another name. */ -}}
{{- $_ := set $is "claimTemplate" (printf "%s-gpus-%s" $is.name (printf "%s %d" $m.gpu.dra.deviceClassName $gpus | sha256sum | trunc 8)) -}}
{{- $_ := set $is "cpu" ($m.resources.requests.cpu | default (add (int $m.settings.server.workers) $here (max 1 $gpus))) -}}
{{- if kindIs "invalid" $m.tolerations -}}
{{- $taint := dict "key" (printf "%s/gpu" (splitList "/" $m.gpu.resource | first)) "operator" "Exists" "effect" "NoSchedule" -}}
{{- $_ := set $m "tolerations" (ternary (list $taint) list (gt $gpus 0)) -}}
{{- end -}}
{{- $_ := set $m "is" $is -}}
{{- include "sluice.validate" (dict "root" $root "m" $m) -}}
{{- toYaml $m -}}
{{- end }}

{{/* The model argument of `sluice serve`: a name on the hub, a folder, a URI, or nothing for the demo. */}}
{{- define "sluice.modelArgument" -}}
{{- $source := .source -}}
{{- if eq $source.type "hub" -}}
{{ $source.repository }}
{{- else if eq $source.type "s3" -}}
{{ $source.s3.uri }}
{{- else if eq $source.type "pvc" -}}
{{ printf "/models/%s" $source.claim.path | trimSuffix "/" }}
{{- else if eq $source.type "download" -}}
{{ printf "/models/%s/%s" $source.repository $source.revision }}
{{- else if eq $source.type "image" -}}
{{ printf "/models/%s" $source.oci.path | trimSuffix "/" }}
{{- else if eq $source.type "hostPath" -}}
/models
{{- end }}
{{- end }}

{{/* vLLM's arguments, with those that the source and the group of pods add. */}}
{{- define "sluice.engine" -}}
{{- $m := . -}}
{{- $engine := deepCopy $m.engine -}}
{{- with $m.is.servedNames }}{{ $_ := set $engine "served_model_name" . }}{{ end -}}
{{- if and (eq $m.source.type "hub") $m.source.revision -}}
{{- $_ := set $engine "revision" $m.source.revision -}}
{{- $_ := set $engine "tokenizer_revision" $m.source.revision -}}
{{- end -}}
{{- if and (eq $m.source.type "s3") (not (hasKey $engine "load_format")) }}{{ $_ := set $engine "load_format" "runai_streamer" }}{{ end -}}
{{- if $m.multiNode.enabled -}}
{{- if eq $m.multiNode.mode "dataParallel" -}}
{{- $_ := set $engine "data_parallel_size" (int $m.is.engines) -}}
{{- $_ := set $engine "data_parallel_size_local" (int $m.is.enginesPerPod) -}}
{{- $_ := set $engine "data_parallel_rpc_port" (int $m.multiNode.port) -}}
{{- else -}}
{{- $_ := set $engine "nnodes" (int $m.is.size) -}}
{{- $_ := set $engine "master_port" (int $m.multiNode.port) -}}
{{- $_ := set $engine "distributed_executor_backend" "mp" -}}
{{- end -}}
{{- end -}}
{{- toYaml $engine -}}
{{- end }}

{{/* The settings file of `sluice serve`. */}}
{{- define "sluice.settings" -}}
{{- $m := . -}}
{{- $settings := deepCopy $m.settings -}}
{{- $_ := set $settings.server "port" 8000 -}}
{{- /* Metrics, documents and the kubelet's probes; no Service, route or pool leads there. */ -}}
{{- $_ := set $settings.server "management_port" 8001 -}}
{{- $_ := set $settings.server "drain_timeout_s" (int $m.drain.timeoutSeconds) -}}
{{- if $m.apiKeys.existingSecret }}{{ $_ := set $settings.server "api_keys_file" "/etc/sluice/keys/api-keys" }}{{ end -}}
{{- if $m.multiNode.enabled -}}
{{- /* Engines on other machines can only be restarted together with their pods, which the group does. */ -}}
{{- $_ := set $settings.supervisor "max_restarts" 0 -}}
{{- end -}}
{{- $_ := set $settings "engine" (include "sluice.engine" $m | fromYaml) -}}
{{- range $section := keys $settings }}{{ if not (get $settings $section) }}{{ $_ := unset $settings $section }}{{ end }}{{ end -}}
{{- toYaml $settings -}}
{{- end }}
