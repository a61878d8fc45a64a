"""What holds for every object of the chart, with any of its ci values and for any Kubernetes."""

import re

import helm_python
import kubernetes_validate
import pytest

from tests.chart import security
from tests.chart.conftest import Rendered
from tests.chart.rendering import CHART, CI_VALUES, Object, find, load, names, pods, render, selects

# Objects of other operators, which Kubernetes has no schema of.
CUSTOM = {"ServiceMonitor"}
STANDARD_LABELS = {
    *("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"),
    *("app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"),
}


def test_lint(rendered: Rendered) -> None:
    report = helm_python.lint(CHART, rendered.values, strict=True, kube_version=f"v{rendered.kube_version}")
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


# `make chart-checks` does 1.24, of which kubernetes-validate has no schemas any more.
@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("name", CI_VALUES)
def test_schemas_of_kubernetes(name: str, version: str) -> None:
    _validate(name, version)


@pytest.mark.parametrize("minor", range(25, 38))
def test_schemas_of_every_kubernetes(minor: int) -> None:
    _validate("locked-down", f"1.{minor}")


def test_schemas_of_kubernetes_refuse_a_typo() -> None:
    deployment = find(render(), "Deployment", "emopfx-server")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolcy"):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


def test_pod_security(rendered: Rendered) -> None:
    found = pods(rendered.objects)
    assert found.keys() >= {"server", "generate", "analyze", "test"}
    assert {name: security.violations(pod["spec"]) for name, pod in found.items()} == {name: [] for name in found}
    for pod in found.values():
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


def test_pod_security_is_checked() -> None:
    loose = {"podSecurityContext": {"runAsNonRoot": None, "seccompProfile": None}}
    found = security.violations(pods(render(loose))["server"]["spec"])
    assert found == ["container server: runAsNonRoot", "container server: seccompProfile"]


def test_standard_labels(rendered: Rendered) -> None:
    for item in _of_chart(rendered):
        assert item["metadata"]["labels"].keys() >= STANDARD_LABELS
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == "emopfx"


def test_deployments_select_their_own_pods(rendered: Rendered) -> None:
    found = {name: pod["metadata"]["labels"] for name, pod in pods(rendered.objects).items()}
    for item in rendered.objects:
        if item["kind"] in ("Deployment", "PodDisruptionBudget"):
            component = item["metadata"]["name"].removeprefix("emopfx-")
            assert [name for name in found if selects(item["spec"]["selector"], found[name])] == [component]


def test_services_select_servers(rendered: Rendered) -> None:
    services = [item for item in rendered.objects if item["kind"] == "Service"]
    found = pods(rendered.objects)
    ports = {port["name"]: port["containerPort"] for port in found["server"]["spec"]["containers"][0]["ports"]}
    assert ports == {"http": 8000}
    for service in services:
        selector = {"matchLabels": service["spec"]["selector"]}
        assert [name for name in found if selects(selector, found[name]["metadata"]["labels"])] == ["server"]
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
    several = rendered.values.get("server", {}).get("replicas", 1) > 1
    assert {item["spec"].get("clusterIP") for item in services} == ({None, "None"} if several else {None})


def test_what_pods_mount_is_there(rendered: Rendered) -> None:
    objects, values = rendered.objects, rendered.values
    given = {values.get(key, {}).get("existingClaim") for key in ("persistence", "cache")} - {None}
    certificates = values.get("s3", {}).get("ca", {}).get("existingConfigMap")
    for pod in pods(objects).values():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = [mount["name"] for container in pod["spec"]["containers"] for mount in container["volumeMounts"]]
        assert sorted(mounts) == sorted(volumes)
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                claims = names(objects, "PersistentVolumeClaim") | given
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "configMap" in volume:
                assert volume["configMap"]["name"] in names(objects, "ConfigMap") | {certificates}


def test_service_accounts(rendered: Rendered) -> None:
    found = pods(rendered.objects)
    accounts = names(rendered.objects, "ServiceAccount")
    if rendered.name == "existing-claim":
        assert accounts == set()
        accounts = {"inference", "batch"}
    assert {pod["spec"]["serviceAccountName"] for pod in found.values()} == accounts
    tokens = {name for name, pod in found.items() if pod["spec"]["automountServiceAccountToken"]}
    assert tokens == found.keys() & {"operator"}
    for item in rendered.objects:
        assert item["kind"] != "ServiceAccount" or item["automountServiceAccountToken"] is False


def test_versions_of_the_api(rendered: Rendered) -> None:
    beta = rendered.kube_version == "1.20.2"
    versions = {item["kind"]: item["apiVersion"] for item in rendered.objects}
    assert versions["CronJob"] == ("batch/v1beta1" if beta else "batch/v1")
    if "PodDisruptionBudget" in versions:
        assert versions["PodDisruptionBudget"] == ("policy/v1beta1" if beta else "policy/v1")
    gated = {"podFailurePolicy" in _job_spec(rendered.objects, stage) for stage in ("generate", "analyze")}
    assert gated == {rendered.kube_version in ("1.29.0", "1.37.0")}


def test_names_at_their_limits() -> None:
    values = {**load(CI_VALUES["rwx-replicas"]), "operator": {"enabled": True}}
    for release in ("a" * 53, f"{'b' * 42}-{'b' * 10}", "v1.2.research"):
        objects = render(values, release=release)
        for item in objects:
            name = item["metadata"]["name"]
            assert len(name) <= (52 if item["kind"] == "CronJob" else 63)
            assert "." not in name
            assert "--" not in name
            assert not name.endswith("-")
            assert all(len(label) <= 63 for label in item["metadata"]["labels"].values())
        identities = [(item["kind"], item["metadata"]["name"]) for item in objects]
        assert len(set(identities)) == len(identities)


# What YAML takes for a number, a truth value, nothing or a time where it is not quoted.
@pytest.mark.parametrize("odd", ["42", "true", "null", "1e3", "0x1f", "2024", "on", "1.5"])
def test_strings_stay_strings(odd: str) -> None:
    account = {"create": True, "name": odd}
    values = {
        "image": {"server": {"repository": odd, "tag": odd}, "jobs": {"repository": odd, "tag": odd}},
        "imagePullSecrets": [{"name": odd}],
        "model": {"name": odd, "revision": odd},
        "huggingFace": {"existingSecret": odd, "secretKey": odd},
        "apiKey": {"existingSecret": odd, "secretKey": odd},
        "s3": {
            "enabled": True,
            "existingSecret": odd,
            "region": odd,
            "ca": {"existingConfigMap": odd, "key": odd},
        },
        "persistence": {"existingClaim": odd},
        "cache": {"existingClaim": odd},
        "server": {"serviceAccount": account, **_pod_values(odd)},
        "jobs": {"serviceAccount": account, "kueue": {"queueName": odd}, **_pod_values(odd)},
        "operator": {"enabled": True, "serviceAccount": account, **_pod_values(odd)},
        "grafanaDashboard": {"enabled": True, "labels": {odd: odd}},
        "serviceMonitor": {"enabled": True, "labels": {odd: odd}},
        "podDisruptionBudget": {"enabled": True, "minAvailable": "50%"},
    }
    if odd in ("true", "null", "on"):
        values["nameOverride"] = odd
    objects = render(values, release=odd, namespace=odd)
    for item in objects:
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, "1.37", strict=True)
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == odd
    assert pods(objects)["operator"]["spec"]["containers"][0]["args"] == ["watch", "--release", odd]
    assert pods(objects)["server"]["spec"]["containers"][0]["image"] == f"{odd}:{odd}"


def _pod_values(odd: str) -> Object:
    return {
        "podLabels": {odd: odd},
        "podAnnotations": {odd: odd},
        "nodeSelector": {odd: odd},
        "priorityClassName": odd,
        "runtimeClassName": odd,
        "extraEnv": [{"name": "ODD", "value": odd}],
    }


@pytest.mark.parametrize("release", ["42", "2nd", "1emopfx", "3.14"])
def test_names_of_services_begin_with_a_letter(release: str) -> None:
    values = {**load(CI_VALUES["rwx-replicas"]), "operator": {"enabled": True}}
    objects = render(values, release=release)
    for service in names(objects, "Service"):
        assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", service)
    [server] = {pods(objects)["generate"]["spec"]["containers"][0]["args"][6]}
    assert server.removeprefix("http://").partition(":")[0] in names(objects, "Service")


@pytest.mark.parametrize("component", ["server", "jobs", "operator"])
def test_the_users_environment_wins(component: str) -> None:
    extra = [{"name": "HOME", "value": "/home"}, {"name": "HF_HOME", "value": "/models"}]
    values = {"operator": {"enabled": True}}
    objects = render({**values, component: {**values.get(component, {}), "extraEnv": extra}})
    for name in {"jobs": ["generate", "analyze"]}.get(component, [component]):
        environment = pods(objects)[name]["spec"]["containers"][0]["env"]
        assert [entry for entry in environment if entry["name"] in ("HOME", "HF_HOME")] == extra


def test_names_can_be_chosen() -> None:
    objects = render({"fullnameOverride": "asker", "nameOverride": "asking"})
    assert names(objects, "Service") == {"asker-server"}
    assert find(objects, "Service", "asker-server")["spec"]["selector"]["app.kubernetes.io/name"] == "asking"


def test_extra_objects_are_templates() -> None:
    extra = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "{{ .Release.Name }}-map"}}
    text = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: '{{ .Release.Name }}-text'}"
    assert names(render({"extraDeploy": [extra, text]}, release="calm"), "ConfigMap") >= {"calm-map", "calm-text"}


def _validate(name: str, version: str) -> None:
    for item in render(load(CI_VALUES[name]), f"{version}.0"):
        if item["kind"] not in CUSTOM:
            assert kubernetes_validate.validate(item, version, strict=True) == version


def _of_chart(rendered: Rendered) -> list[Object]:
    """Return the objects but those of extraDeploy."""
    extra = {item["kind"] for item in rendered.values.get("extraDeploy", [])}
    return [item for item in rendered.objects if item["kind"] not in extra]


def _job_spec(objects: list[Object], stage: str) -> Object:
    spec: Object = find(objects, "CronJob", f"emopfx-{stage}")["spec"]["jobTemplate"]["spec"]
    return spec
