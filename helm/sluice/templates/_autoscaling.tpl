{{/* The queries of autoscaling. Every query gives exactly one number, the sum over all replicas: KEDA and the autoscaler divide it
     by the target to compute the number of replicas (AverageValue), and more than one element is an error. */}}
{{- define "sluice.triggers" -}}
{{- $m := . -}}
{{- $s := $m.is.selector -}}
{{- $t := $m.autoscaling.targets -}}
{{- $queries := list -}}
{{- if not (kindIs "invalid" $t.waitingRequests) -}}
{{- /* vLLM's gauge includes the gateway's queue; without vLLM's statistics there is only that queue. */ -}}
{{- $queries = append $queries (dict "query" (printf "sum(vllm:num_requests_waiting{%s}) or sum(sluice_requests_waiting{%s})" $s $s) "target" $t.waitingRequests) -}}
{{- end -}}
{{- if gt (int $m.is.running) 0 -}}
{{- $queries = append $queries (dict "query" (printf "sum(sluice_streams_active{%s})" $s) "target" (int $m.is.running)) -}}
{{- end -}}
{{- if not (kindIs "invalid" $t.kvCacheUsage) -}}
{{- $queries = append $queries (dict "query" (printf "sum(avg by (instance) (vllm:kv_cache_usage_perc{%s}))" $s) "target" $t.kvCacheUsage) -}}
{{- end -}}
{{- if not (kindIs "invalid" $t.slowShare) -}}
{{- $bound := trimSuffix ".0" (toString $t.slowSeconds) | replace "." "[.]" -}}
{{- $all := printf "sum(rate(sluice_time_to_first_token_seconds_count{%s}[5m]))" $s -}}
{{- $fast := printf "sum(rate(sluice_time_to_first_token_seconds_bucket{%s,le=~%q}[5m]))" $s (printf "%s([.]0)?" $bound) -}}
{{- $queries = append $queries (dict "query" (printf "(count(sluice_streams_active{%s}) * (1 - %s / (%s > 0))) or (0 * count(sluice_streams_active{%s}))" $s $fast $all $s) "target" $t.slowShare) -}}
{{- end -}}
{{- range $one := $queries }}
- type: prometheus
  metricType: AverageValue
  metadata:
    serverAddress: {{ $m.autoscaling.keda.serverAddress | quote }}
    query: {{ $one.query | quote }}
    threshold: {{ toString $one.target | quote }}
    # An empty result is not zero: if Prometheus lost the pods, scaling in would be wrong. It is an error, and the fallback
    # applies. Only if zero replicas are allowed, an empty result is zero.
    ignoreNullValues: {{ eq (int $m.autoscaling.minReplicas) 0 | quote }}
    {{- with $m.autoscaling.keda.authModes }}
    authModes: {{ . | quote }}
    {{- end }}
    {{- with $m.autoscaling.keda.metadata }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $m.autoscaling.keda.authenticationRef }}
  authenticationRef: {name: {{ . | quote }}, kind: {{ $m.autoscaling.keda.authenticationKind }}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "sluice.externalMetric" -}}
- type: External
  external:
    metric:
      name: {{ .metric | quote }}
      selector:
        matchLabels: {namespace: {{ .root.Release.Namespace | quote }}, app_kubernetes_io_instance: {{ .root.Release.Name | quote }}, sluice_model: {{ .key | quote }}}
    target: {type: AverageValue, averageValue: {{ toString .value | quote }}}
{{- end }}
