"""The commands say in a sentence why they can't go on, and their exit code says whose turn it is."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import kubernetes
import pytest
import yaml
from kubernetes.dynamic import DynamicClient

from tests.e2e.namespace import Namespace, Object, chart_values, new_namespace, wait_until
from tests.e2e.runs import bring_here, check_whole, config, emopfx, kubeconfig, record, started

GPU = "nvidia.com/gpu"
STUCK_SECONDS = 240


def values(folder: Path, name: str, **changes: Object) -> str:
    """Write values of the chart with changes to them, and return the file's path."""
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump({**chart_values(name), **changes}))
    return str(path)


@pytest.fixture
def node(client: kubernetes.client.ApiClient) -> Iterator[str]:
    """The name of a node. No node advertises a GPU, and what a test advertises is taken back."""
    nodes = kubernetes.client.CoreV1Api(client).list_node().items
    if any(GPU in (node.status.allocatable or {}) for node in nodes):
        pytest.skip("the cluster has GPUs")
    name = str(nodes[0].metadata.name)
    yield name
    advertise(client, name, None)


def advertise(client: kubernetes.client.ApiClient, node: str, gpus: str | None) -> None:
    nodes = DynamicClient(client).resources.get(api_version="v1", kind="Node").status
    body = {"status": {resources: {GPU: gpus} for resources in ("capacity", "allocatable")}}
    nodes.patch(name=node, body=body, content_type="application/merge-patch+json")


def test_a_gpu_is_waited_for(client: kubernetes.client.ApiClient, node: str, tmp_path: Path) -> None:
    # Only the GPU shall be missing, on a small machine too.
    requests = {"cpu": "10m", "memory": "64Mi", "ephemeral-storage": "1Mi"}
    jobs = {stage: {"resources": {"requests": requests}} for stage in ("generate", "analyze")}
    given = values(tmp_path, "gpu-default", server={"resources": {"requests": requests}}, jobs=jobs)
    command = ("-f", str(config(tmp_path)), "--values", given)
    with new_namespace(client) as namespace:
        code, out = emopfx(namespace, tmp_path, "run", *command, "--timeout", "30")
        assert code == 1
        assert "emopfx: not ready after 30 s: pod emopfx-server-" in out
        assert f"finds no node: 0/1 nodes are available: 1 Insufficient {GPU}." in out
        entry = record(namespace, "nano")["stages.json"]["deploy"]
        assert (entry["state"], f"Insufficient {GPU}" in entry["reason"]) == ("failed", True)

        with started(namespace, tmp_path, "run", *command) as run:
            assert run.stdout
            assert any(f"Insufficient {GPU}" in line for line in run.stdout)
            code, out = emopfx(namespace, tmp_path, "logs", "--name", "nano")
            assert (code, out.splitlines()[0]) == (0, "nano: there is no Job for generate yet")
            advertise(client, node, "1")
            out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, out
        (server,) = namespace.pods("server")
        assert (server["spec"]["nodeName"], server["spec"]["containers"][0]["resources"]["limits"][GPU]) == (node, "1")
        check_whole(bring_here(namespace, tmp_path, "nano"), 64)


def test_a_server_that_does_not_start(client: kubernetes.client.ApiClient, tmp_path: Path) -> None:
    nowhere = {"repository": "localhost/nowhere", "tag": "1", "pullPolicy": "Always"}
    image = {**chart_values("cpu")["image"], "server": nowhere}
    small = {"resources": {"limits": {"memory": "96Mi"}, "requests": {"cpu": "10m", "memory": "96Mi"}}}
    changes: dict[str, dict[str, Object]] = {
        "ErrImagePull": {"image": image},
        "crashes again and again (exit code 137, OOMKilled)": {"server": small},
        "exceeded quota": {},
    }
    with ExitStack() as stack:
        runs = {}
        for number, (reason, change) in enumerate(changes.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            namespace = stack.enter_context(new_namespace(client))
            if reason == "exceeded quota":
                no_pods(namespace)
            command = ("-f", str(config(folder)), "--values", values(folder, "cpu", **change))
            runs[reason] = stack.enter_context(started(namespace, folder, "run", *command))
        for reason, run in runs.items():
            out, _ = run.communicate(timeout=STUCK_SECONDS)
            assert run.returncode == 1
            assert reason in out.partition("emopfx: ")[2], out


def no_pods(namespace: Namespace) -> None:
    """Let no pod be made; the quota holds when its controller has seen it."""
    spec = {"hard": {"pods": "0"}}
    namespace.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": spec})

    def holds() -> bool:
        found = namespace.get("ResourceQuota", "none")
        return bool(found and found.get("status", {}).get("hard"))

    wait_until("the quota holds", holds)


def test_a_model_that_is_not_there(client: kubernetes.client.ApiClient, tmp_path: Path) -> None:
    given = values(tmp_path, "cpu")
    file = config(tmp_path, model={"name": "/cache/no-such-model"})
    with new_namespace(client) as namespace:
        code, out = emopfx(namespace, tmp_path, "run", "-f", str(file), "--values", given)
    assert code == 2
    assert "emopfx: the server refused to start: " in out
    assert "/cache/no-such-model" in out.splitlines()[-1]


def test_a_config_before_its_job(client: kubernetes.client.ApiClient, tmp_path: Path) -> None:
    with new_namespace(client) as namespace:
        code, out = emopfx(namespace, tmp_path, "run", "-f", str(config(tmp_path)), "--stages", "generate")
        assert (code, "has no release emopfx of emopfx (no CronJob for generate)" in out) == (2, True)
        assert "has no release" in record(namespace, "nano")["stages.json"]["generate"]["reason"]


class TestAccess:
    def test_no_kubeconfig(self, namespace: Namespace, tmp_path: Path) -> None:
        nowhere = {"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
        code, out = emopfx(namespace, tmp_path, "status", **nowhere)
        assert (code, len(out.splitlines())) == (2, 1)
        assert out.startswith("emopfx: there is no cluster to talk to (KUBECONFIG or ~/.kube/config): ")

    def test_no_cluster(self, namespace: Namespace, tmp_path: Path) -> None:
        way = str(kubeconfig(tmp_path, {"server": "https://127.0.0.1:1"}))
        code, out = emopfx(namespace, tmp_path, "status", KUBECONFIG=way)
        assert (code, len(out.splitlines())) == (1, 1)
        assert out.startswith("emopfx: the cluster at https://127.0.0.1:1 does not answer: ")

    def test_no_permission(self, client: kubernetes.client.ApiClient, namespace: Namespace, tmp_path: Path) -> None:
        core = kubernetes.client.CoreV1Api(client)
        core.create_namespaced_service_account(namespace.name, {"metadata": {"name": "nobody"}})
        asked = {"spec": {"audiences": [], "expirationSeconds": 600}}
        token = core.create_namespaced_service_account_token("nobody", namespace.name, asked).status.token
        way = str(kubeconfig(tmp_path, user={"token": token}))
        for command, *arguments in (["status"], ["run", "-f", str(config(tmp_path))]):
            code, out = emopfx(namespace, tmp_path, command, *arguments, KUBECONFIG=way)
            assert (code, len(out.splitlines())) == (1, 1), out
            assert out.startswith("emopfx: the cluster refused to ")
            assert f'User "system:serviceaccount:{namespace.name}:nobody" cannot ' in out

    def test_wrong_credentials(self, namespace: Namespace, tmp_path: Path) -> None:
        way = str(kubeconfig(tmp_path, user={"token": "wrong"}))
        code, out = emopfx(namespace, tmp_path, "status", KUBECONFIG=way)
        assert (code, out.count("Unauthorized"), len(out.splitlines())) == (1, 1, 1)
