"""How the Jobs reach S3."""

from typing import Any

import pytest

from tests.chart.rendering import CI_VALUES, Object, find, load, pods, render

JOBS = ("generate", "analyze")


def s3(**settings: Any) -> list[Object]:
    return render({"s3": {"enabled": True, **settings}})


def container(objects: list[Object], component: str) -> Object:
    found: Object = pods(objects)[component]["spec"]["containers"][0]
    return found


def variables(objects: list[Object], component: str) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in container(objects, component)["env"]}


@pytest.mark.parametrize("component", JOBS)
def test_the_jobs_get_address_keys_and_certificates(component: str) -> None:
    objects = render(load(CI_VALUES["s3"]))
    found = variables(objects, component)
    assert found["AWS_ENDPOINT_URL_S3"] == "https://minio.storage:9000"
    assert found["AWS_DEFAULT_REGION"] == "us-east-1"
    assert {"secretRef": {"name": "object-store"}} in container(objects, component)["envFrom"]
    folder, _, file = found["AWS_CA_BUNDLE"].rpartition("/")
    assert file == "ca.crt"
    mounts = {mount["mountPath"]: mount["name"] for mount in container(objects, component)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pods(objects)[component]["spec"]["volumes"]}
    assert volumes[mounts[folder]]["configMap"]["name"] == "object-store-ca"


def test_nobody_else_gets_the_keys() -> None:
    objects = render({**load(CI_VALUES["s3"]), "operator": {"enabled": True}})
    for component in pods(objects).keys() - set(JOBS):
        assert "envFrom" not in container(objects, component)
        assert not any(name.startswith("AWS_") for name in variables(objects, component))


def test_a_cloud_role_needs_no_keys() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/emopfx"}
    objects = render({"s3": {"enabled": True}, "jobs": {"serviceAccount": {"annotations": role}}})
    assert find(objects, "ServiceAccount", "emopfx-jobs")["metadata"]["annotations"] == role
    assert pods(objects)["generate"]["spec"]["serviceAccountName"] == "emopfx-jobs"
    assert "envFrom" not in container(objects, "generate")


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("", 443), ("https://s3.example", 443), ("http://s3.example/path", 80), ("http://minio.storage:9000", 9000)],
)
def test_the_jobs_alone_reach_the_port(endpoint: str, port: int) -> None:
    objects = render({"s3": {"enabled": True, "endpointUrl": endpoint}, "networkPolicy": {"allowHub": False}})
    rule = {"ports": [{"port": port, "protocol": "TCP"}]}
    for component in ("server", "test", *JOBS):
        egress = find(objects, "NetworkPolicy", f"emopfx-{component}")["spec"]["egress"]
        assert (rule in egress) == (component in JOBS)


def test_where_the_service_is_may_be_said() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "storage"}}}
    egress = find(s3(egressTo=[peer]), "NetworkPolicy", "emopfx-generate")["spec"]["egress"]
    assert {"to": [peer], "ports": [{"port": 443, "protocol": "TCP"}]} in egress


def test_without_s3_nothing_of_it_is_there() -> None:
    objects = render({"s3": {"existingSecret": "object-store", "ca": {"existingConfigMap": "ca"}}})
    assert "envFrom" not in container(objects, "generate")
    assert "s3-ca" not in str(objects)
