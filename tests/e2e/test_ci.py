"""The script for CI that needs nothing but kubectl, with the operator in the cluster."""

import os
import subprocess
import time
from pathlib import Path

from tests.e2e.namespace import ROOT, Namespace, Object, chart_values
from tests.e2e.runs import config, jobs, kubeconfig, states
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


def test_applied_twice_runs_once(namespace: Namespace, tmp_path: Path) -> None:
    namespace.install({**chart_values("cpu"), "operator": {"enabled": True}})
    namespace.wait_server()
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
