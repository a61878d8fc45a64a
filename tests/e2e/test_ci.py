"""CI begins runs: by the script that needs nothing but kubectl, and by `emopfx run` with the rights of access.yaml."""

import os
import subprocess
import time
from pathlib import Path

import kubernetes
import pytest

from tests.e2e.namespace import ROOT, Namespace, Object, chart_values
from tests.e2e.runs import config, emopfx, jobs, kubeconfig, states
from tests.e2e.test_watch import wait_done

# Within which the operator looks at what was applied.
OPERATOR_SECONDS = 5


def apply(namespace: Namespace, file: Path) -> Object:
    """Run the script as CI does, and return the ConfigMap."""
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig(file.parent, namespace=namespace.name))}
    subprocess.run([ROOT / "manifests" / "ci" / "apply.sh", file], check=True, env=environment)
    found = namespace.get("ConfigMap", f"emopfx-{file.stem}")
    assert found is not None
    return found


@pytest.fixture(scope="module", autouse=True)
def operator(namespace: Namespace) -> None:
    namespace.install({**chart_values("cpu"), "operator": {"enabled": True}})
    namespace.wait_server()


def test_runs_with_the_rights_that_are_shown(
    client: kubernetes.client.ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    rights = [ROOT / "manifests" / "ci" / "access.yaml"]
    subprocess.run(["kubectl", "apply", "--namespace", namespace.name, "-f", *rights], check=True)
    core = kubernetes.client.CoreV1Api(client)
    asked = {"spec": {"audiences": [], "expirationSeconds": 600}}
    token = core.create_namespaced_service_account_token("emopfx-ci", namespace.name, asked).status.token
    way = str(kubeconfig(tmp_path, user={"token": token}))
    command = ("-f", str(config(tmp_path, "narrow", dataset={"samples": 1})), "--stages", "configure,generate,analyze")
    for said in ("narrow: done; ", "narrow: nothing to do"):
        code, out = emopfx(namespace, tmp_path, "run", *command, KUBECONFIG=way)
        assert (code, said in out) == (0, True), out


def test_applied_twice_runs_once(namespace: Namespace, tmp_path: Path) -> None:
    file = config(tmp_path, "from-ci", dataset={"samples": 1})
    apply(namespace, file)
    wait_done(namespace, "from-ci")
    made = {name: job["metadata"]["uid"] for name, job in jobs(namespace, "from-ci").items()}
    assert len(made) == 2

    data = apply(namespace, file)["data"]
    assert data["experiment.yaml"] == file.read_text()
    assert set(states(namespace, "from-ci").values()) == {"succeeded"}
    time.sleep(OPERATOR_SECONDS)
    assert namespace.get("ConfigMap", "emopfx-from-ci")["data"] == data  # type: ignore[index]
    assert {name: job["metadata"]["uid"] for name, job in jobs(namespace, "from-ci").items()} == made
