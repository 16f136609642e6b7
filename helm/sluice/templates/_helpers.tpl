{{/* Names, labels and small calculations. The merged values of a model are in _model.tpl, refusals in _validate.tpl. */}}

{{- define "sluice.fullname" -}}
{{ .Values.fullnameOverride | default .Release.Name }}
{{- end }}

{{- define "sluice.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (ternary (include "sluice.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* The selector's labels. They can never change for an existing Deployment, so they contain no others.
     Takes root, component and, for objects of a model, key. */}}
{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- with .key }}
sluice/model: {{ . | quote }}
{{- end }}
{{- end }}

{{/* The `metadata` of an object. Takes the arguments of the selector, name, and optionally labels and annotations. */}}
{{- define "sluice.metadata" -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" -}}
{{- $own := dict "app.kubernetes.io/version" .root.Chart.AppVersion "app.kubernetes.io/managed-by" .root.Release.Service "helm.sh/chart" $chart -}}
name: {{ .name | quote }}
labels: {{- toYaml (merge (include "sluice.podLabels" . | fromYaml) $own) | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Labels of pods: without versions, or every new version of the chart would restart every pod, changed or not. */}}
{{- define "sluice.podLabels" -}}
{{- toYaml (merge (include "sluice.selector" . | fromYaml) (.labels | default dict) .root.Values.commonLabels) -}}
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

{{/* The beginning of every pod's spec: user, image pull secrets, nodes. Takes root; on, a part of the
     values with some of nodeSelector, affinity, tolerations, priorityClassName; and account, if it uses Kubernetes' API. */}}
{{- define "sluice.podBasics" -}}
serviceAccountName: {{ .account | default (include "sluice.serviceAccountName" .root) | quote }}
automountServiceAccountToken: {{ not (empty .account) }}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $name := list "nodeSelector" "affinity" "tolerations" }}
{{- with get $.on $name }}
{{ $name }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with get .on "priorityClassName" }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{/* The rules' files with the URL of the runbooks and the objectives put in. They are complete without that, because
Prometheus reads them unchanged where there is no chart. */}}
{{- define "sluice.rules" -}}
{{- $rule := .root.Values.metrics.prometheusRule }}
{{- $text := .root.Files.Get .path | replace "runbook_url: runbooks.md" (printf "runbook_url: %s" $rule.runbooks) }}
{{- /* In this order: 0.1 may be the objective of the first token, 2 cannot be that of the others. */}}
{{- range list (list $rule.slo.itlSeconds "0.1" "0[.]1" "longer") (list $rule.slo.ttftSeconds "2" "2" "later") }}
{{- $bound := printf "%v" (index . 0) }}
{{- $text = $text | replace (printf "vector(%s)" (index . 1)) (printf "vector(%s)" $bound) }}
{{- $text = $text | replace (printf `le=~"%s(` (index . 2)) (printf `le=~"%s(` (replace "." "[.]" $bound)) }}
{{- $text = $text | replace (printf "%s than %s s" (index . 3) (index . 1)) (printf "%s than %s s" (index . 3) $bound) }}
{{- end }}
{{- $text | replace "* 0.01" (printf "* %.6g" (subf 1 $rule.slo.share)) }}
{{- end }}
