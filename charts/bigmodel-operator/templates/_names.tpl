{{/* Names, labels and image references that more than one template uses. */}}

{{- define "bigmodel.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}-operator
{{- end }}

{{- define "bigmodel.storeName" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}-store
{{- end }}

{{/* Selector labels of one component: dict "root" $ "component" "operator" */}}
{{- define "bigmodel.selector" -}}
app.kubernetes.io/name: bigmodel-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "bigmodel.labels" -}}
{{ include "bigmodel.selector" . }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: bigmodel
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* The reference of one image: dict "root" $ "name" "trainer" */}}
{{- define "bigmodel.image" -}}
{{- $values := .root.Values -}}
{{- index $values.images .name | default (printf "%s/%s:%s" (trimSuffix "/" $values.registry) .name ($values.tag | default .root.Chart.AppVersion)) -}}
{{- end }}

{{- define "bigmodel.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Pod Security "restricted", and a user that exists in every image of ours. */}}
{{- define "bigmodel.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "bigmodel.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The default store as spec.store has it, or nothing. The embedded one's address must resolve in every namespace. */}}
{{- define "bigmodel.store" -}}
{{- $store := .Values.store -}}
{{- $chosen := compact (list (ternary "s3" "" (not (empty $store.s3))) (ternary "persistentVolumeClaim" "" (not (empty $store.persistentVolumeClaim))) (ternary "embedded" "" $store.embedded.enabled)) -}}
{{- if gt (len $chosen) 1 -}}
{{- fail (printf "store has %s: keep one of s3, persistentVolumeClaim and embedded.enabled" (join " and " $chosen)) -}}
{{- end -}}
{{- if $store.s3 -}}
{{- dict "s3" $store.s3 | toYaml -}}
{{- else if $store.persistentVolumeClaim -}}
{{- dict "persistentVolumeClaim" $store.persistentVolumeClaim | toYaml -}}
{{- else if $store.embedded.enabled -}}
s3:
  bucket: bigmodel
  endpoint: http://{{ include "bigmodel.storeName" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:8333
  secretName: bigmodel-store
{{- end -}}
{{- end }}
