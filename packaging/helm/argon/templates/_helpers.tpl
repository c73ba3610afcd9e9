{{- define "argon.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "argon.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "argon.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "argon.selectorLabels" -}}
app.kubernetes.io/name: {{ include "argon.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "argon.labels" -}}
{{ include "argon.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "argon.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "argon.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "argon.image" -}}
{{- $repository := required "image.repository is where the image of packaging/Dockerfile has been pushed to" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* What the engine would refuse at its start is refused here. */}}
{{- define "argon.check" -}}
{{- $open := or .Values.api.allowUnauthenticated (and .Values.tls.existingSecret .Values.tls.clientCaKey) -}}
{{- if not (or $open .Values.api.existingSecret) -}}
{{- fail "api.existingSecret names the Secret with the API's tokens; without one say api.allowUnauthenticated=true" -}}
{{- end -}}
{{- if and .Values.api.existingSecret (not .Values.api.tokenKey) (not .Values.api.tokensFileKey) -}}
{{- fail "api.existingSecret is set, and neither api.tokenKey nor api.tokensFileKey names a key of it" -}}
{{- end -}}
{{- if and .Values.tls.clientCaKey (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCaKey is a key of tls.existingSecret, which is not set" -}}
{{- end -}}
{{- $engines := ternary .Values.keda.maxReplicas .Values.replicaCount .Values.keda.enabled | int -}}
{{- if and (hasPrefix "file:" .Values.store.url) (gt $engines 1) (not .Values.extraVolumeMounts) -}}
{{- fail "store.url is a directory: several engines need one volume that all of them can write to, in extraVolumes and extraVolumeMounts" -}}
{{- end -}}
{{- end -}}

{{/* The port of the store: of its endpoint, if it has one of its own. */}}
{{- define "argon.storePorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.egress.storePorts -}}
{{- $ports = append $ports (int .) -}}
{{- end -}}
{{- with get .Values.settings "ARGON_S3_ENDPOINT" -}}
{{- $url := urlParse . -}}
{{- $given := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- $ports = append $ports (int (default (ternary 80 443 (eq $url.scheme "http")) $given)) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{/* The series of these engines, as the ServiceMonitor labels them. */}}
{{- define "argon.series" -}}
{{- default (printf "job=%q,namespace=%q,service=%q" "argon" .Release.Namespace (include "argon.fullname" .)) .Values.keda.selector -}}
{{- end -}}
