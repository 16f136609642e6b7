{{/* Parts of groups of pods on several machines: the workers' command, and how they wait for the leader. */}}

{{/* Engines without a server, or a part of one, that the leader commands: vLLM's `vllm serve --headless`, which its CPU
     build refuses under its own name. */}}
{{- define "sluice.workerCommand" -}}
{{- $spread := eq .multiNode.mode "dataParallel" -}}
command:
  - sh
  - -c
  - >-
    exec sluice engine "$MODEL" --config /etc/sluice/settings/worker.yaml
    {{- if $spread }}
    --data-parallel-address "$LWS_LEADER_ADDRESS"
    --data-parallel-start-rank $(( LWS_WORKER_INDEX * {{ .is.enginesPerPod }} ))
    {{- else }}
    --master-addr "$LWS_LEADER_ADDRESS" --node-rank "$LWS_WORKER_INDEX"
    {{- end }}
{{- end }}

{{/* vLLM reads the same arguments from a file, with dashes. */}}
{{- define "sluice.workerEngine" -}}
{{- $out := dict -}}
{{- range $name, $value := include "sluice.engine" . | fromYaml -}}
{{- $_ := set $out (replace "_" "-" $name) $value -}}
{{- end -}}
{{- toYaml $out -}}
{{- end }}

{{/* All pods of a group get SIGTERM at the same moment. A worker that exited would end the leader's streams, so it stays
     until the leader has gone, or the time of the drain is over. */}}
{{- define "sluice.hold" -}}
exec:
  command: [python3, /etc/sluice/settings/hold.py, "{{ add (int .m.drain.preStopSeconds) (int .m.drain.timeoutSeconds) }}", "8000"]
{{- end }}

{{/* The data of the ConfigMap with everything that a pod reads; its hash is the pods' annotation. */}}
{{- define "sluice.configData" -}}
sluice.yaml: |
  {{- include "sluice.settings" . | nindent 2 }}
{{- if .multiNode.enabled }}
worker.yaml: |
  {{- include "sluice.workerEngine" . | nindent 2 }}
{{- end }}
{{- end }}
