"""The images as restricted pods: read-only root, no rights, a number for a user, and an end when they are told to."""

import hashlib
from typing import Any

import pytest

from tests.e2e.namespace import Namespace, Object, chart_values, wait_until

SERVER, JOBS = "server", "jobs"
# The kubelet needs a second or two to notice, and more where the node is busy.
ENDS_WITHIN_SECONDS = 30
COMPLETION = {
    "messages": [{"role": "user", "content": "What is 6 times 7?"}],
    "temperature": 0,
    "ndif": {"save_dir": "image", "layers": [0, -1], "hook_points": ["output"], "positions": "all"},
}


def restricted_pod(image: str, **container: Any) -> Object:
    given = chart_values("cpu")["image"][image]
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": image},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": image,
                    "image": f"{given['repository']}:{given['tag']}",
                    "imagePullPolicy": "IfNotPresent",
                    "securityContext": security,
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "data", "mountPath": "/data"}],
                    **container,
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "data", "emptyDir": {}}],
        },
    }


@pytest.fixture(scope="module")
def server(namespace: Namespace) -> str:
    probe = {"httpGet": {"path": "/readyz", "port": 8000}, "periodSeconds": 1}
    namespace.create(restricted_pod(SERVER, readinessProbe=probe))
    namespace.wait_ready(SERVER)
    return SERVER


def test_server_answers_and_captures(namespace: Namespace, server: str) -> None:
    answer = namespace.ask(f"pods/{server}", "/v1/chat/completions", COMPLETION)
    assert answer["choices"][0]["message"]["content"]
    captured = answer["ndif"]
    rows = answer["usage"]["total_tokens"] - 1  # the last token never passes through the model
    assert {name: shape[0] for name, shape in captured["shapes"].items()} == {
        "layers.0.output": rows,
        "layers.3.output": rows,
    }
    for file in captured["files"]:
        content = namespace.fetch(f"pods/{server}", f"/v1/activations/{captured['save_dir']}/{file['name']}")
        assert hashlib.sha256(content).hexdigest() == file["sha256"]


def test_server_image_holds_no_tools(namespace: Namespace, server: str) -> None:
    assert namespace.shell(server, "id -u; id -g").split() == ["10001", "10001"]
    assert "Read-only file system" in namespace.shell(server, "touch /root-is-writable")
    tools = "gcc cc g++ make git curl"
    assert namespace.shell(server, f"for tool in {tools}; do command -v $tool; done") == ""
    assert "No module named pip" in namespace.shell(server, "python -m pip --version")


def test_jobs_image_runs_the_command_line(namespace: Namespace) -> None:
    namespace.create(restricted_pod(JOBS))
    assert namespace.wait_ended(JOBS, seconds=60) == 0
    assert "Usage: emopfx" in namespace.log(JOBS)
    namespace.delete("Pod", JOBS)
    wait_until("the pod is gone", lambda: namespace.get("Pod", JOBS) is None)


def test_sigterm_ends_the_job_and_then_the_server(namespace: Namespace, server: str) -> None:
    address = namespace.get("Pod", server)["status"]["podIP"]  # type: ignore[index]
    experiment = "-f manifests/experiments/demo.yaml --repeats 100 --stages configure,generate --results /data/results"
    namespace.create(restricted_pod(JOBS, args=["run", *experiment.split(), "--server", f"http://{address}:8000"]))
    wait_until("the job generates", lambda: _answers(namespace) or None)
    namespace.shell(JOBS, "kill -TERM 1")
    assert namespace.wait_ended(JOBS, ENDS_WITHIN_SECONDS) == 130
    assert "stopped; what is finished is kept" in namespace.log(JOBS)

    namespace.shell(server, "kill -TERM 1")
    assert namespace.wait_ended(server, ENDS_WITHIN_SECONDS) == 143


def _answers(namespace: Namespace) -> int:
    return namespace.log(SERVER).count("POST /v1/chat/completions") - 1
