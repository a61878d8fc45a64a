"""The server's Deployment, Services and claim."""

import json
from typing import Any

import pytest

from tests.chart.rendering import CI_VALUES, Object, find, load, names, pods, render


def deployment(values: Object | None = None) -> Object:
    spec: Object = find(render(values), "Deployment", "emopfx-server")["spec"]
    return spec


def pod(values: Object | None = None) -> Object:
    spec: Object = deployment(values)["template"]["spec"]
    return spec


def container(values: Object | None = None) -> Object:
    [found] = pod(values)["containers"]
    return dict(found)


def environment(values: Object | None = None) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in container(values)["env"]}


def test_one_gpu_by_default() -> None:
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod()["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert deployment()["replicas"] == 1
    assert deployment()["strategy"] == {"type": "Recreate"}


def test_other_gpus_and_none() -> None:
    others = container({"gpu": {"count": 2, "resourceName": "amd.com/gpu"}})
    assert others["resources"]["limits"] == {"memory": "16Gi", "amd.com/gpu": "2"}
    assert pod({"gpu": {"resourceName": "amd.com/gpu"}})["tolerations"][0]["key"] == "amd.com/gpu"
    assert container({"gpu": {"enabled": False}})["resources"]["limits"] == {"memory": "16Gi"}
    assert "tolerations" not in pod({"gpu": {"enabled": False}})


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, "emopfx-server:0.1.0"),
        ({"repository": "example.org/server", "tag": "2"}, "example.org/server:2"),
        ({"tag": "2", "digest": f"sha256:{'a' * 64}"}, f"emopfx-server@sha256:{'a' * 64}"),
    ],
)
def test_image(image: Object, expected: str) -> None:
    assert container({"image": {"server": image}})["image"] == expected


def test_is_given_the_time_that_a_download_takes() -> None:
    for seconds in (5, 603, 3600):
        values = {"server": {"startupSeconds": seconds}}
        startup = container(values)["startupProbe"]
        assert seconds <= startup["periodSeconds"] * startup["failureThreshold"] < seconds + startup["periodSeconds"]
        # Else `kubectl rollout status` and `helm --wait` give up after ten minutes.
        assert deployment(values)["progressDeadlineSeconds"] > seconds


def test_probes() -> None:
    found = container()
    paths = {kind: found[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def test_drains() -> None:
    values = {"server": {"preStopSeconds": 7, "terminationGracePeriodSeconds": 90}}
    assert container(values)["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert pod(values)["terminationGracePeriodSeconds"] == 90


def test_shared_memory() -> None:
    values = {"server": {"shmSizeLimit": "2Gi"}}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(values)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(values)["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}


def test_settings() -> None:
    given = {
        "model": {"name": "a/b", "dtype": "float32", "revision": "main"},
        "server": {"maxBatchSize": 3_000_000, "captureBytes": 1 << 40},
    }
    found = environment(given)
    assert {key: value for key, value in found.items() if key.startswith("EMOPFX_")} == {
        "EMOPFX_HOST": "0.0.0.0",
        "EMOPFX_PORT": "8000",
        "EMOPFX_DATA_DIR": "/data/results",
        "EMOPFX_MODEL": "a/b",
        "EMOPFX_DTYPE": "float32",
        "EMOPFX_REVISION": "main",
        "EMOPFX_MAX_BATCH_SIZE": "3000000",
        "EMOPFX_CAPTURE_BYTES": str(1 << 40),
    }
    assert environment().keys().isdisjoint({"EMOPFX_REVISION", "EMOPFX_CAPTURE_BYTES", "HF_TOKEN"})
    # A Service named emopfx would otherwise set EMOPFX_PORT to tcp://….
    assert pod()["enableServiceLinks"] is False


def test_several_servers() -> None:
    objects = render(load(CI_VALUES["rwx-replicas"]))
    assert find(objects, "Deployment", "emopfx-server")["spec"]["replicas"] == 2
    assert find(objects, "Service", "emopfx-server-headless")["spec"]["clusterIP"] == "None"
    (generate,) = pods(objects)["generate"]["spec"]["containers"]
    assert "http://emopfx-server-headless:8000" in generate["args"]
    assert names(render(), "Service") == {"emopfx-server"}


def test_the_claim_outlives_the_release() -> None:
    values = {"persistence": {"storageClass": "fast", "size": "7Gi", "annotations": {"a": "b"}}}
    claim = find(render(values), "PersistentVolumeClaim", "emopfx-data")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep", "a": "b"}
    requests = {"requests": {"storage": "7Gi"}}
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": requests}


@pytest.mark.parametrize(("given", "expected"), [("", None), ("-", "")])
def test_storage_class(given: str, expected: str | None) -> None:
    spec = find(render({"persistence": {"storageClass": given}}), "PersistentVolumeClaim", "emopfx-data")["spec"]
    assert spec.get("storageClassName") == expected


def test_claims_that_are_there() -> None:
    objects = render(load(CI_VALUES["existing-claim"]))
    assert names(objects, "PersistentVolumeClaim") == set()
    for component in ("server", "generate", "analyze"):
        volumes = {volume["name"]: volume for volume in pods(objects)[component]["spec"]["volumes"]}
        claims = {name: volumes[name]["persistentVolumeClaim"]["claimName"] for name in ("data", "cache")}
        assert claims == {"data": "research-data", "cache": "models"}


def test_service_monitor_scrapes_each_server_once() -> None:
    objects = render(load(CI_VALUES["rwx-replicas"]))
    monitor = find(objects, "ServiceMonitor", "emopfx-server")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [item for item in objects if item["kind"] == "Service" and wanted <= item["metadata"]["labels"].items()]
    assert [item["metadata"]["name"] for item in services] == ["emopfx-server"]
    [endpoint] = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == ("http", "/metrics", "30s")


def test_the_dashboard_is_there_for_grafana_to_find() -> None:
    objects = render({"grafanaDashboard": {"enabled": True, "labels": {"team": "calm"}}})
    found = find(objects, "ConfigMap", "emopfx-dashboard")
    assert {"team": "calm", "grafana_dashboard": "1"}.items() <= found["metadata"]["labels"].items()
    [(name, text)] = found["data"].items()
    assert name == "emopfx-server.json"
    assert json.loads(text)["title"] == "emopfx server"
    assert "emopfx-dashboard" not in names(render(), "ConfigMap")


def test_settings_of_the_user() -> None:
    spread = [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]
    values = {
        "server": {
            "affinity": {"nodeAffinity": {}},
            "nodeSelector": {"gpu": "h100"},
            "topologySpreadConstraints": spread,
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
            "podLabels": {"team": "a"},
            "podAnnotations": {"note": "b"},
            "serviceAnnotations": {"cloud": "internal"},
        }
    }
    spec = pod(values)
    assert (spec["affinity"], spec["nodeSelector"]) == ({"nodeAffinity": {}}, {"gpu": "h100"})
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("high", "nvidia")
    assert spec["topologySpreadConstraints"] == spread
    metadata = deployment(values)["template"]["metadata"]
    assert metadata["labels"]["team"] == "a"
    assert metadata["annotations"] == {"note": "b"}
    assert find(render(values), "Service", "emopfx-server")["metadata"]["annotations"] == {"cloud": "internal"}
