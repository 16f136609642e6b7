{{/* The pod of the Job that puts weights on a claim. Takes root and m. */}}
{{- define "sluice.downloadPod" -}}
{{- $root := .root -}}
{{- $m := .m -}}
{{- $env := concat (list (dict "name" "MODEL" "value" $m.is.model) (dict "name" "REPOSITORY" "value" $m.source.repository) (dict "name" "REVISION" "value" $m.source.revision) (dict "name" "HOME" "value" "/tmp") (dict "name" "HF_HOME" "value" "/tmp/huggingface")) (include "sluice.hubEnv" $m | fromYamlArray) -}}
metadata:
  labels: {{- include "sluice.podLabels" (dict "root" $root "component" "download" "key" $m.is.key) | nindent 4 }}
spec:
  {{- include "sluice.podBasics" (dict "root" $root "on" $m) | nindent 2 }}
  restartPolicy: OnFailure
  securityContext: {{- toYaml $m.podSecurityContext | nindent 4 }}
  containers:
    - name: download
      image: {{ include "sluice.image" (dict "root" $root "image" $m.image) | quote }}
      imagePullPolicy: {{ $m.image.pullPolicy }}
      # Present files are kept, so a restart continues where it stopped. The mark is written last.
      command: [sh, -euc, 'mkdir -p "$MODEL"; test -e "$MODEL/.complete" || hf download "$REPOSITORY" --revision "$REVISION" --local-dir "$MODEL"; touch "$MODEL/.complete"']
      env: {{- toYaml $env | nindent 8 }}
      securityContext: {{- toYaml (merge (dict "readOnlyRootFilesystem" true) $m.securityContext) | nindent 8 }}
      resources:
        requests: {cpu: "1", memory: 2Gi, ephemeral-storage: 1Gi}
        limits: {memory: 8Gi}
      volumeMounts:
        - {name: weights, mountPath: /models}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - name: weights
      persistentVolumeClaim: {claimName: {{ $m.is.claim | quote }}}
    - name: tmp
      emptyDir: {}
{{- end }}
