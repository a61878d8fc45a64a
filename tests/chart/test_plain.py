"""The manifests for people without Helm."""

import kubernetes_validate
import pytest
import yaml

from tests.chart import plain
from tests.chart.rendering import Object

FILES = list(plain.WHAT)


def objects(file: str) -> list[Object]:
    return list(yaml.safe_load_all((plain.FOLDER / f"{file}.yaml").read_text()))


@pytest.mark.parametrize("file", FILES)
def test_is_as_the_chart_is(file: str) -> None:
    assert (plain.FOLDER / f"{file}.yaml").read_text() == plain.manifests()[file], "stale: make manifests"


@pytest.mark.parametrize("file", FILES)
def test_nothing_in_it_is_for_helm(file: str) -> None:
    for item in objects(file):
        assert "helm" not in yaml.safe_dump(item).lower()
        assert "namespace" not in item["metadata"]


@pytest.mark.parametrize("version", [plain.KUBE_VERSION.rpartition(".")[0], "1.37"])
@pytest.mark.parametrize("file", FILES)
def test_schemas_of_kubernetes(file: str, version: str) -> None:
    for item in objects(file):
        assert kubernetes_validate.validate(item, version, strict=True) == version


def test_only_the_operator_is_apart() -> None:
    kinds = {file: sorted(item["kind"] for item in objects(file)) for file in FILES}
    assert kinds["gpu"] == kinds["cpu"]
    assert set(kinds["gpu"]).isdisjoint({"Pod", "Role", "RoleBinding"})
    assert kinds["operator"] == ["Deployment", "NetworkPolicy", "Role", "RoleBinding", "ServiceAccount"]


def test_the_kustomization_knows_the_files_and_the_images() -> None:
    kustomization = yaml.safe_load((plain.FOLDER / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) <= {f"{file}.yaml" for file in FILES}
    assert kustomization["namespace"] == plain.NAMESPACE
    text = "".join((plain.FOLDER / f"{file}.yaml").read_text() for file in FILES)
    for image in kustomization["images"]:
        assert f"image: {image['name']}:" in text
