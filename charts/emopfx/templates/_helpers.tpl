{{/* The start of every name: the release's name, with the chart's name if it isn't in it already. CronJobs may have
52 characters, of which the longest suffix takes 9; a Service's name has no dots and begins with a letter, a release's
may be otherwise. */}}
{{- define "emopfx.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 43 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- if regexMatch "^[0-9]" $full }}{{ $full = printf "%s-%s" $name .Release.Name }}{{ end -}}
{{- $full | replace "." "-" | trunc 43 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels that never change, by which a component's pods are found: (dict "root" $ "component" "server"). */}}
{{- define "emopfx.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . | quote }}
{{- end }}
{{- end }}

{{/* All labels of an object: (dict "root" $ "component" "server"). */}}
{{- define "emopfx.labels" -}}
{{ include "emopfx.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" | quote }}
{{- end }}

{{/* An image by digest if there is one, else by tag: (dict "root" $ "image" .Values.image.server). */}}
{{- define "emopfx.image" -}}
{{- with .image.digest -}}
{{ printf "%s@%s" $.image.repository . }}
{{- else -}}
{{ printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) }}
{{- end -}}
{{- end }}

{{- define "emopfx.serviceAccountName" -}}
{{- $account := (index .root.Values .of).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "emopfx.fullname" .root) .of) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end }}

{{- define "emopfx.claimName" -}}
{{- default (printf "%s-data" (include "emopfx.fullname" .)) .Values.persistence.existingClaim -}}
{{- end }}

{{/* "true" if pods on several nodes may use the data claim at once. */}}
{{- define "emopfx.sharedAcrossNodes" -}}
{{- if has "ReadWriteMany" .Values.persistence.accessModes }}true{{ end -}}
{{- end }}

{{/* Settings of a pod that every component takes alike: (dict "root" $ "of" "server"). */}}
{{- define "emopfx.podSettings" -}}
serviceAccountName: {{ include "emopfx.serviceAccountName" . | quote }}
automountServiceAccountToken: {{ eq .of "operator" }}
{{- /* Else a Service named emopfx would put EMOPFX_PORT=tcp://… into the environment, where settings are read. */}}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- $settings := index .root.Values .of }}
{{- range $key := list "nodeSelector" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" }}
{{- with index $settings $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Tolerations: the component's own, and with a claim that one node holds, those of the server that the Jobs must
follow to its node. GPU nodes are usually tainted with the name of the resource. */}}
{{- define "emopfx.tolerations" -}}
{{- $own := (index .root.Values .of).tolerations | default list -}}
{{- $follows := and (eq .of "jobs") (not (include "emopfx.sharedAcrossNodes" .root)) -}}
{{- if $follows }}{{ $own = concat $own (.root.Values.server.tolerations | default list) }}{{ end -}}
{{- if and .root.Values.gpu.enabled (or (eq .of "server") $follows) -}}
{{- $own = append $own (dict "key" .root.Values.gpu.resourceName "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- with $own -}}
tolerations:
  {{- toYaml (uniq .) | nindent 2 }}
{{- end }}
{{- end }}

{{/* Affinity of the Jobs: the user's own, and the server's node if only one node can hold the claim. A server that is
scaled down holds none. */}}
{{- define "emopfx.jobAffinity" -}}
{{- $affinity := deepCopy (.Values.jobs.affinity | default dict) -}}
{{- if and .Values.server.replicas (not (include "emopfx.sharedAcrossNodes" .)) -}}
{{- $labels := include "emopfx.selectorLabels" (dict "root" . "component" "server") | fromYaml -}}
{{- $term := dict "labelSelector" (dict "matchLabels" $labels) "topologyKey" "kubernetes.io/hostname" -}}
{{- $pods := dig "podAffinity" (dict) $affinity -}}
{{- $required := dig "requiredDuringSchedulingIgnoredDuringExecution" (list) $pods -}}
{{- $pods = merge (dict "requiredDuringSchedulingIgnoredDuringExecution" (append $required $term)) $pods -}}
{{- $affinity = merge (dict "podAffinity" $pods) $affinity -}}
{{- end -}}
{{- with $affinity -}}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A container's environment: the chart's own entries, as YAML, but for those that the user's replace, and the user's:
(dict "own" … "extra" .Values.server.extraEnv). */}}
{{- define "emopfx.env" -}}
{{- $extra := .extra | default list -}}
{{- $replaced := list -}}
{{- range $extra }}{{ $replaced = append $replaced .name }}{{ end -}}
{{- $kept := list -}}
{{- range fromYamlArray .own }}{{ if not (has .name $replaced) }}{{ $kept = append $kept . }}{{ end }}{{ end -}}
{{- toYaml (concat $kept $extra) -}}
{{- end }}

{{/* Environment that server and Jobs share: a home that can be written, and the Hugging Face hub's cache and token. */}}
{{- define "emopfx.commonEnv" -}}
- name: HOME
  value: /tmp
- name: HF_HOME
  value: /cache/huggingface
{{- with .Values.huggingFace.existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: {{ $.Values.huggingFace.secretKey | quote }}
{{- end }}
{{- end }}

{{/* The key that the server asks for and its clients send. */}}
{{- define "emopfx.apiKeyEnv" -}}
{{- with .Values.apiKey.existingSecret -}}
- name: EMOPFX_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . | quote }}
      key: {{ $.Values.apiKey.secretKey | quote }}
{{- end }}
{{- end }}

{{/* How the Jobs reach S3: by boto3's own variables. */}}
{{- define "emopfx.s3Env" -}}
{{- if .Values.s3.enabled }}
{{- with .Values.s3.endpointUrl }}
- name: AWS_ENDPOINT_URL_S3
  value: {{ . | quote }}
{{- end }}
{{- with .Values.s3.region }}
- name: AWS_DEFAULT_REGION
  value: {{ . | quote }}
{{- end }}
{{- if .Values.s3.ca.existingConfigMap }}
- name: AWS_CA_BUNDLE
  value: {{ printf "/s3-ca/%s" .Values.s3.ca.key | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Environment of a stage's Job: (dict "root" $ "stage" "generate"). Only generate asks the server. */}}
{{- define "emopfx.jobEnv" -}}
{{ include "emopfx.commonEnv" .root }}
{{- if eq .stage "generate" }}
{{ include "emopfx.apiKeyEnv" .root }}
{{- end }}
{{- include "emopfx.s3Env" .root }}
{{- end }}

{{/* Environment of a server. */}}
{{- define "emopfx.serverEnv" -}}
- name: EMOPFX_HOST
  value: 0.0.0.0
- name: EMOPFX_PORT
  value: "8000"
- name: EMOPFX_DATA_DIR
  value: /data/results
- name: EMOPFX_MODEL
  value: {{ .Values.model.name | quote }}
- name: EMOPFX_DTYPE
  value: {{ .Values.model.dtype | quote }}
{{- with .Values.model.revision }}
- name: EMOPFX_REVISION
  value: {{ . | quote }}
{{- end }}
- name: EMOPFX_MAX_BATCH_SIZE
  value: {{ int64 .Values.server.maxBatchSize | quote }}
{{- with .Values.server.captureBytes }}
- name: EMOPFX_CAPTURE_BYTES
  value: {{ int64 . | quote }}
{{- end }}
{{ include "emopfx.commonEnv" . }}
{{ include "emopfx.apiKeyEnv" . }}
{{- end }}

{{/* Environment of a pod that only asks the server: the operator, and the test. */}}
{{- define "emopfx.clientEnv" -}}
- name: HOME
  value: /tmp
{{ include "emopfx.apiKeyEnv" . }}
{{- end }}

{{/* The port of S3: the endpoint's own, or its scheme's. */}}
{{- define "emopfx.s3Port" -}}
{{- $endpoint := urlParse (.Values.s3.endpointUrl | default "") }}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $endpoint.host) }}
{{- $port | default (eq $endpoint.scheme "http" | ternary "80" "443") }}
{{- end }}

{{/* Volumes that server and Jobs share. */}}
{{- define "emopfx.commonVolumes" -}}
- name: data
  persistentVolumeClaim:
    claimName: {{ include "emopfx.claimName" . | quote }}
- name: cache
  {{- if .Values.cache.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.cache.existingClaim | quote }}
  {{- else }}
  emptyDir: {{ with .Values.cache.sizeLimit }}{sizeLimit: {{ . | quote }}}{{ else }}{}{{ end }}
  {{- end }}
- name: tmp
  emptyDir: {}
{{- end }}

{{- define "emopfx.commonVolumeMounts" -}}
- name: data
  mountPath: /data
- name: cache
  mountPath: /cache
- name: tmp
  mountPath: /tmp
{{- end }}

{{/* The experiment that a Job made by hand runs, as YAML. It asks the model that is served unless it names one. */}}
{{- define "emopfx.experiment" -}}
{{- $model := dict "name" .Values.model.name "dtype" .Values.model.dtype -}}
{{- with .Values.model.revision }}{{ $model = set $model "revision" . }}{{ end -}}
{{- $given := default (.Files.Get "files/by-hand.yaml" | fromYaml) .Values.experiment -}}
{{- toYaml (merge (deepCopy $given) (dict "model" $model)) -}}
{{- end }}

{{/* Refuses values that each may be right but not together. */}}
{{- define "emopfx.check" -}}
{{- if and (gt (int .Values.server.replicas) 1) (not (include "emopfx.sharedAcrossNodes" .)) }}
{{- fail (printf "server.replicas is %d, but persistence.accessModes is %s: several servers need a claim with ReadWriteMany" (int .Values.server.replicas) (toJson .Values.persistence.accessModes)) }}
{{- end }}
{{- if ge (int64 .Values.server.preStopSeconds) (int64 .Values.server.terminationGracePeriodSeconds) }}
{{- fail (printf "server.preStopSeconds is %d, but server.terminationGracePeriodSeconds is %d: it counts the seconds of preStop too, and must be more" (int64 .Values.server.preStopSeconds) (int64 .Values.server.terminationGracePeriodSeconds)) }}
{{- end }}
{{- if and .Values.jobs.kueue.queueName (semverCompare "<1.22-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "jobs.kueue.queueName needs suspended Jobs, which Kubernetes has since 1.22; this cluster has %s" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
