{{/* Names, labels and small calculations. What a model's values amount to is in _model.tpl, what is refused in _validate.tpl. */}}

{{- define "sluice.fullname" -}}
{{ .Values.fullnameOverride | default .Release.Name }}
{{- end }}

{{- define "sluice.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (ternary (include "sluice.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* Labels that select. They can never change for an existing Deployment, so there are no others among them.
     Takes root, component and, for what belongs to a model, key. */}}
{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- with .key }}
sluice/model: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "sluice.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods: without versions, or every new version of the chart would restart every pod, changed or not. */}}
{{- define "sluice.podLabels" -}}
{{ include "sluice.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* repository:tag or repository@digest. Takes root and image. */}}
{{- define "sluice.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* A quantity of Kubernetes (512Mi, 1.5G, 1000) in bytes. */}}
{{- define "sluice.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- mulf (float64 $number) (float64 (get $units (trimPrefix $number $text))) | int64 -}}
{{- end }}

{{/* What every pod of the chart starts with: nothing talks to Kubernetes unless it says so. */}}
{{- define "sluice.podBasics" -}}
serviceAccountName: {{ include "sluice.serviceAccountName" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The rules' files with the address of the runbooks put in. */}}
{{- define "sluice.rules" -}}
{{- replace "runbook_url: runbooks.md" (printf "runbook_url: %s" .root.Values.metrics.prometheusRule.runbooks) (.root.Files.Get .path) -}}
{{- end }}
