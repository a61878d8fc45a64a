#!/usr/bin/env bash
# Starts runs with nothing but kubectl: every experiment file becomes a ConfigMap, which the operator in the cluster
# (the chart's operator.enabled) takes up. Applied again, a file changes nothing.
#
#   manifests/ci/apply.sh manifests/experiments/demo.yaml …
#
# The cluster and the namespace are the kubeconfig's; RELEASE is the Helm release, emopfx if not set.
set -euo pipefail

for file in "$@"; do
  name=$(sed -nE "/^name:/{s/^name: *//; s/ +#.*//; s/[[:space:]]*$//; s/^([\"'])(.*)\1$/\2/; p}" "$file")
  [[ $name =~ ^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
    { echo "$file: it needs a line 'name: …' with 1 to 40 of a-z, 0-9 and - (not at its ends)" >&2; exit 2; }
  kubectl create configmap "emopfx-$name" --from-file=experiment.yaml="$file" --dry-run=client --output=yaml |
    kubectl label --local --filename=- --output=yaml "emopfx.dev/experiment=$name" "emopfx.dev/release=${RELEASE:-emopfx}" |
    kubectl apply --server-side --force-conflicts --field-manager=ci --filename=-
done
