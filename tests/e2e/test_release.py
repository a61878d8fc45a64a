"""A release's life."""

import hashlib

from kubernetes.client.exceptions import ApiException

from tests.e2e.namespace import CHART, RELEASE, Namespace, Object, chart_values, wait_until

SERVICE = f"services/{RELEASE}-server"
COMPLETION = {
    "messages": [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples does he have?"}],
    "temperature": 0,
    "ndif": {"request_id": "kept", "save_dir": "kept", "layers": "all"},
}


def wait_server(namespace: Namespace) -> Object:
    """Wait until the server is ready and its Service leads there; return its pod."""
    pod = namespace.wait_server()
    wait_until("the Service leads to the server", lambda: answers(namespace))
    return pod


def answers(namespace: Namespace) -> bool:
    try:
        namespace.fetch(SERVICE, "/readyz")
    except ApiException:
        return False
    return True


def complete(namespace: Namespace) -> Object:
    return namespace.ask(SERVICE, "/v1/chat/completions", COMPLETION)


def batch_size(pod: Object) -> str:
    environment = pod["spec"]["containers"][0]["env"]
    return str(next(entry["value"] for entry in environment if entry["name"] == "EMOPFX_MAX_BATCH_SIZE"))


def assert_found(namespace: Namespace, first: Object) -> None:
    """The server knows the first answer again, and its files are what they were."""
    again = complete(namespace)
    assert again["ndif"] == {**first["ndif"], "replayed": True}
    assert again["choices"] == first["choices"]
    for file in first["ndif"]["files"]:
        content = namespace.fetch(SERVICE, f"/v1/activations/{first['ndif']['save_dir']}/{file['name']}")
        assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_install_test_upgrade_rollback_uninstall_and_install_again(namespace: Namespace) -> None:
    values = chart_values("cpu")
    namespace.install(values)
    wait_server(namespace)
    tested = namespace.helm.test(RELEASE, timeout=120, logs=True)
    assert "as the answer said" in tested["logs"]
    first = complete(namespace)
    assert not first["ndif"]["replayed"]

    namespace.helm.upgrade(CHART, RELEASE, {**values, "server": {**values["server"], "maxBatchSize": 3}})
    assert batch_size(wait_server(namespace)) == "3"
    assert_found(namespace, first)

    namespace.helm.rollback(RELEASE)
    assert batch_size(wait_server(namespace)) == "64"
    assert_found(namespace, first)

    namespace.helm.uninstall(RELEASE)
    wait_until("the server is gone", lambda: not namespace.find("Pod", "app.kubernetes.io/component=server"))
    assert [claim["status"]["phase"] for claim in namespace.find("PersistentVolumeClaim")] == ["Bound"]
    for kind in ("Deployment", "Service", "ConfigMap", "Role"):
        assert namespace.find(kind, f"app.kubernetes.io/instance={RELEASE}") == []

    namespace.install(values)
    wait_server(namespace)
    assert_found(namespace, first)
