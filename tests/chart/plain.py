"""Manifests for people without Helm: the chart's objects as files for kubectl, without what only Helm reads.

`make manifests` writes them, for Kubernetes KUBE_VERSION and newer.
"""

import os
from typing import Any

import yaml

from tests.chart.rendering import CI_VALUES, ROOT, Object, load, render

FOLDER = ROOT / "manifests" / "kubernetes"
KUBE_VERSION = "1.29.0"
NAMESPACE = "emopfx"
HEADER = """\
# Rendered from charts/emopfx by `make manifests`, for Kubernetes {version} and newer: {what}.
#
#   kubectl create namespace {namespace}
#   kubectl apply --namespace {namespace} -f manifests/kubernetes/{file}.yaml
#
{more}
"""
WHAT = {
    "gpu": "a model from the Hugging Face hub on one GPU",
    "cpu": "the built-in model, without a GPU",
    "operator": "`emopfx watch`, beside gpu.yaml or cpu.yaml",
}
RELEASE_NOTE = """\
# Images and another namespace: kustomization.yaml. Deleting all of it deletes the results; this keeps them:
#
#   kubectl delete --namespace {namespace} -f manifests/kubernetes/{file}.yaml -l app.kubernetes.io/component!=data"""
OPERATOR_NOTE = """\
# It starts a run for every experiment that manifests/ci/apply.sh applies. Images and another namespace:
# kustomization.yaml."""


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def manifests(kube_version: str = KUBE_VERSION) -> dict[str, str]:
    """Return the text of each file by its name, without `.yaml`."""
    watched = [
        item for item in _objects({"operator": {"enabled": True}}, kube_version) if _component(item) == "operator"
    ]
    objects = {
        "gpu": _objects({}, kube_version),
        "cpu": _objects(load(CI_VALUES["cpu"]), kube_version),
        "operator": watched,
    }
    return {file: _header(file, kube_version) + _dump(found) for file, found in objects.items()}


def _objects(values: Object, kube_version: str) -> list[Object]:
    rendered = render(values, kube_version, namespace=NAMESPACE)
    return [_without_helm(item) for item in rendered if _component(item) != "test"]


def _component(item: Object) -> str:
    return str(item["metadata"]["labels"]["app.kubernetes.io/component"])


def _without_helm(value: Any) -> Any:
    """Return a value without Helm's labels and annotations, and without what is empty then."""
    if isinstance(value, list):
        return [_without_helm(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if not _of_helm(key)}
    cleaned = {key: _without_helm(item) for key, item in kept.items()}
    return {key: item for key, item in cleaned.items() if key != "annotations" or item}


def _of_helm(key: str) -> bool:
    return key.startswith("helm.sh/") or key == "app.kubernetes.io/managed-by"


def _header(file: str, kube_version: str) -> str:
    note = OPERATOR_NOTE if file == "operator" else RELEASE_NOTE
    names = {"file": file, "namespace": NAMESPACE}
    version = kube_version.rpartition(".")[0]
    return HEADER.format(**names, version=version, what=WHAT[file], more=note.format(**names))


def _dump(objects: list[Object]) -> str:
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=120)


if __name__ == "__main__":
    for file, text in manifests(os.environ.get("KUBE_VERSION", KUBE_VERSION)).items():
        (FOLDER / f"{file}.yaml").write_text(text)
