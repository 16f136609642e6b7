{{/* The pods that hold GPUs: the server's, and in a group of machines the workers'. Takes root, m and role: server or worker. */}}
{{- define "sluice.podTemplate" -}}
{{- $root := .root -}}
{{- $m := .m -}}
{{- $worker := eq .role "worker" -}}
metadata:
  labels:
    {{- include "sluice.podLabels" (dict "root" $root "component" .role "key" $m.is.key "labels" $m.podLabels) | nindent 4 }}
  annotations:
    # A changed setting is a rollout.
    checksum/config: {{ include "sluice.configData" $m | sha256sum }}
    {{- with $m.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "sluice.podBasics" (dict "root" $root "on" $m) | nindent 2 }}
  terminationGracePeriodSeconds: {{ $m.is.terminationGracePeriod }}
  securityContext: {{- toYaml $m.podSecurityContext | nindent 4 }}
  {{- with $m.schedulerName }}
  schedulerName: {{ . | quote }}
  {{- end }}
  {{- with $m.runtimeClassName }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  {{- if and $m.topologySpread (not $worker) }}
  topologySpreadConstraints:
    {{- range $m.topologySpread }}
    - topologyKey: {{ . | quote }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "sluice.selector" (dict "root" $root "component" "server" "key" $m.is.key) | nindent 10 }}
      # Old pods do not count while new ones are placed.
      matchLabelKeys: [{{ ternary "leaderworkerset.sigs.k8s.io/template-revision-hash" "pod-template-hash" $m.multiNode.enabled }}]
    {{- end }}
  {{- end }}
  {{- if $m.gpu.dra.enabled }}
  resourceClaims:
    - name: gpus
      resourceClaimTemplateName: {{ $m.is.claimTemplate }}
  {{- end }}
  {{- if or $m.initContainers (eq $m.source.type "download") }}
  initContainers:
    {{- if eq $m.source.type "download" }}
    - name: wait-for-weights
      image: {{ include "sluice.image" (dict "root" $root "image" $m.image) | quote }}
      imagePullPolicy: {{ $m.image.pullPolicy }}
      # As process 1, a shell without a trap would ignore SIGTERM, and hold its GPUs to the end of the grace period.
      command: [sh, -c, 'trap "exit 143" TERM; until test -e "$MODEL/.complete"; do echo "waiting for the download of $MODEL"; sleep 5; done']
      env:
        - {name: MODEL, value: {{ $m.is.model | quote }}}
      securityContext: {{- include "sluice.containerSecurity" $m | nindent 8 }}
      resources:
        requests: {cpu: 10m, memory: 16Mi}
        limits: {memory: 64Mi}
      volumeMounts:
        - {name: weights, mountPath: /models, readOnly: true}
    {{- end }}
    {{- with $m.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: {{ .role }}
      image: {{ include "sluice.image" (dict "root" $root "image" $m.image) | quote }}
      imagePullPolicy: {{ $m.image.pullPolicy }}
      {{- if $worker }}
      {{- include "sluice.workerCommand" $m | nindent 6 }}
      {{- else }}
      # Process 1 must be the server itself: it alone gets the signal, the engine's process must not.
      command: [sluice]
      args:
        - serve
        {{- with $m.is.model }}
        - {{ . | quote }}
        {{- end }}
        - --config=/etc/sluice/settings/sluice.yaml
      ports:
        - {name: http, containerPort: 8000, protocol: TCP}
        - {name: management, containerPort: 8001, protocol: TCP}
      {{- include "sluice.probes" $m | trim | nindent 6 }}
      {{- end }}
      lifecycle:
        preStop: {{- include (ternary "sluice.hold" "sluice.preStop" $worker) (dict "root" $root "m" $m) | nindent 10 }}
      env: {{- include "sluice.env" . | trim | nindent 8 }}
      {{- with $m.envFrom }}
      envFrom: {{- toYaml . | nindent 8 }}
      {{- end }}
      resources: {{- include "sluice.resources" $m | nindent 8 }}
      securityContext: {{- include "sluice.containerSecurity" $m | nindent 8 }}
      volumeMounts:
        - {name: settings, mountPath: /etc/sluice/settings, readOnly: true}
        {{- if and $m.apiKeys.existingSecret (not $worker) }}
        # The folder, not the file alone: a file would never see a changed Secret.
        - {name: api-keys, mountPath: /etc/sluice/keys, readOnly: true}
        {{- end }}
        - {name: shm, mountPath: /dev/shm}
        - {name: cache, mountPath: /cache}
        - {name: tmp, mountPath: /tmp}
        {{- if has $m.source.type (list "pvc" "download" "hostPath" "image") }}
        - {name: weights, mountPath: /models, readOnly: true}
        {{- end }}
        {{- with $m.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $m.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: settings
      configMap: {name: {{ $m.is.name }}}
    {{- if and $m.apiKeys.existingSecret (not $worker) }}
    - name: api-keys
      secret:
        secretName: {{ $m.apiKeys.existingSecret | quote }}
        items: [{key: {{ $m.apiKeys.key | quote }}, path: api-keys}]
    {{- end }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ $m.is.shm }}}
    - name: cache
      {{- if eq $m.cache.type "pvc" }}
      persistentVolumeClaim: {claimName: {{ $m.cache.claimName | quote }}}
      {{- else }}
      emptyDir: {sizeLimit: {{ $m.cache.sizeLimit }}}
      {{- end }}
    - name: tmp
      emptyDir: {}
    {{- if has $m.source.type (list "pvc" "download") }}
    - name: weights
      persistentVolumeClaim: {claimName: {{ $m.is.claim | quote }}, readOnly: true}
    {{- else if eq $m.source.type "hostPath" }}
    - name: weights
      hostPath: {path: {{ $m.source.hostPath.path | quote }}, type: Directory}
    {{- else if eq $m.source.type "image" }}
    - name: weights
      image: {reference: {{ $m.source.oci.reference | quote }}, pullPolicy: {{ $m.source.oci.pullPolicy }}}
    {{- end }}
    {{- with $m.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "sluice.containerSecurity" -}}
{{- toYaml (merge (dict "readOnlyRootFilesystem" .is.readOnly) .securityContext) -}}
{{- end }}

{{/* On the management port, where no client's connections wait in the queue. */}}
{{- define "sluice.probes" -}}
{{- range $name, $path := dict "startup" "/readyz" "readiness" "/readyz" "liveness" "/livez" -}}
{{ $name }}Probe:
  httpGet: {path: {{ $path }}, port: management}
  {{- range $key, $value := get $.probes $name }}
  {{ $key }}: {{ int $value }}
  {{- end }}
{{ end }}
{{- end }}

{{/* The pod serves until routers have removed it. */}}
{{- define "sluice.preStop" -}}
{{- if semverCompare ">=1.30.0-0" .root.Capabilities.KubeVersion.Version -}}
sleep: {seconds: {{ int .m.drain.preStopSeconds }}}
{{- else -}}
exec: {command: [sleep, {{ int .m.drain.preStopSeconds | quote }}]}
{{- end }}
{{- end }}

{{- define "sluice.resources" -}}
requests:
  cpu: {{ .is.cpu | toString | quote }}
  {{- range $name, $value := omit .resources.requests "cpu" }}
  {{ $name }}: {{ toString $value | quote }}
  {{- end }}
limits:
  {{- range $name, $value := merge (dict) .resources.limits .resources.extended }}
  {{- with $value }}
  {{ $name }}: {{ toString . | quote }}
  {{- end }}
  {{- end }}
  {{- if and (gt (int .gpu.count) 0) (not .gpu.dra.enabled) }}
  {{ .gpu.resource }}: {{ int .gpu.count | quote }}
  {{- end }}
{{- if .gpu.dra.enabled }}
claims: [{name: gpus}]
{{- end }}
{{- end }}

{{/* The chart's variables, unless the user sets one of the same name, then the user's. */}}
{{- define "sluice.env" -}}
{{- $m := .m -}}
{{- $own := list -}}
{{- range $m.env }}{{ $own = append $own .name }}{{ end -}}
{{- $env := list -}}
{{- /* PyTorch looks up the user's name; for a user id without a name these variables give it. */ -}}
{{- range $name, $value := dict "HOME" "/cache" "USER" "sluice" "LOGNAME" "sluice" "PYTHONUNBUFFERED" "1" "XDG_CACHE_HOME" "/cache/xdg" "HF_HOME" "/cache/huggingface" "VLLM_CACHE_ROOT" "/cache/vllm" "TRITON_CACHE_DIR" "/cache/triton" "TORCHINDUCTOR_CACHE_DIR" "/cache/inductor" -}}
{{- $env = append $env (dict "name" $name "value" $value) -}}
{{- end -}}
{{- if $m.is.offline }}{{ $env = append $env (dict "name" "HF_HUB_OFFLINE" "value" "1") }}{{ end -}}
{{- if eq $m.source.type "hub" }}{{ $env = concat $env (include "sluice.hubEnv" $m | fromYamlArray) }}{{ end -}}
{{- if eq $m.source.type "s3" -}}
{{- with $m.source.s3.endpoint }}{{ $env = append $env (dict "name" "AWS_ENDPOINT_URL" "value" .) }}{{ end -}}
{{- with $m.source.s3.region }}{{ $env = append $env (dict "name" "AWS_DEFAULT_REGION" "value" .) }}{{ end -}}
{{- with $m.source.s3.existingSecret -}}
{{- range $name := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" -}}
{{- $env = append $env (dict "name" $name "valueFrom" (dict "secretKeyRef" (dict "name" $m.source.s3.existingSecret "key" $name))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $m.multiNode.enabled (eq .role "server") -}}
{{- /* The controller puts LWS_LEADER_ADDRESS before these. */ -}}
{{- $env = append $env (dict "name" (ternary "SLUICE_ENGINE__DATA_PARALLEL_ADDRESS" "SLUICE_ENGINE__MASTER_ADDR" (eq $m.multiNode.mode "dataParallel")) "value" "$(LWS_LEADER_ADDRESS)") -}}
{{- end -}}
{{- if eq .role "worker" }}{{ $env = append $env (dict "name" "MODEL" "value" $m.is.model) }}{{ end -}}
{{- range $one := $env -}}
{{- if not (has $one.name $own) }}
- {{ toYaml $one | nindent 2 | trim }}
{{- end -}}
{{- end -}}
{{- range $m.env }}
- {{ toYaml . | nindent 2 | trim }}
{{- end -}}
{{- end }}

{{- define "sluice.hubEnv" -}}
{{- $env := list -}}
{{- with .source.endpoint }}{{ $env = append $env (dict "name" "HF_ENDPOINT" "value" .) }}{{ end -}}
{{- with .source.token -}}
{{- if .existingSecret }}{{ $env = append $env (dict "name" "HF_TOKEN" "valueFrom" (dict "secretKeyRef" (dict "name" .existingSecret "key" .key))) }}{{ end -}}
{{- end -}}
{{- toYaml $env -}}
{{- end }}
