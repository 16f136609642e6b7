{{/* Annotations that make controllers forward a stream at once, and for as long as it lasts. Takes a merged model. */}}
{{- define "sluice.ingressAnnotations" -}}
{{- $longest := int (get .settings.streams "max_timeout_s" | default 3600) -}}
{{- if eq .ingress.preset "nginx" -}}
nginx.ingress.kubernetes.io/proxy-buffering: "off"
nginx.ingress.kubernetes.io/proxy-request-buffering: "off"
nginx.ingress.kubernetes.io/proxy-http-version: "1.1"
# Only requests that could not be sent go to another pod; a cluster-wide setting could generate answers twice.
nginx.ingress.kubernetes.io/proxy-next-upstream: error timeout
nginx.ingress.kubernetes.io/proxy-read-timeout: {{ $longest | quote }}
nginx.ingress.kubernetes.io/proxy-send-timeout: {{ $longest | quote }}
nginx.ingress.kubernetes.io/proxy-body-size: {{ int64 (get .settings.server "max_body_bytes" | default 16777216) | quote }}
{{- else if eq .ingress.preset "alb" -}}
alb.ingress.kubernetes.io/target-type: ip
alb.ingress.kubernetes.io/healthcheck-path: /readyz
# Streams are never idle for this long; a whole answer is, until it is complete.
alb.ingress.kubernetes.io/load-balancer-attributes: idle_timeout.timeout_seconds=900
alb.ingress.kubernetes.io/target-group-attributes: deregistration_delay.timeout_seconds={{ min 3600 .is.grace }},load_balancing.algorithm.type=least_outstanding_requests
{{- else if eq .ingress.preset "haproxy" -}}
haproxy.org/timeout-server: {{ $longest }}s
haproxy.org/timeout-client: {{ $longest }}s
haproxy.org/load-balance: leastconn
haproxy.org/check: "true"
haproxy.org/check-http: /readyz
{{- end }}
{{- end }}

{{/* The idle seconds after which AWS' load balancer closes a connection to the server, its own default included; 0 without
     one. */}}
{{- define "sluice.balancerIdle" -}}
{{- if and .ingress.enabled (eq .ingress.preset "alb") -}}
{{- $annotations := merge (dict) .ingress.annotations (include "sluice.ingressAnnotations" . | fromYaml) -}}
{{- $attributes := get $annotations "alb.ingress.kubernetes.io/load-balancer-attributes" -}}
{{- regexFind "idle_timeout[.]timeout_seconds=[0-9]+" $attributes | trimPrefix "idle_timeout.timeout_seconds=" | default "60" -}}
{{- else -}}
0
{{- end -}}
{{- end }}
