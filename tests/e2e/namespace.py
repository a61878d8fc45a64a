"""A namespace of the tests' own, on the cluster that KUBECONFIG names."""

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import helm_python
import kubernetes
import yaml
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import NotFoundError
from kubernetes.stream import stream

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "emopfx"
RELEASE = "emopfx"
READY_SECONDS = 180
SHELL_SECONDS = 30
LOG_LINES = 20
VERSIONS = {
    "Deployment": "apps/v1",
    "Job": "batch/v1",
    "Lease": "coordination.k8s.io/v1",
    "Role": "rbac.authorization.k8s.io/v1",
}

Object = dict[str, Any]
Found = TypeVar("Found")


def chart_values(name: str) -> Object:
    """Return the values of charts/emopfx/ci/<name>-values.yaml, with the images that were built for the tests."""
    images = {part: {"repository": f"localhost/emopfx-{part}", "tag": "dev"} for part in ("server", "jobs")}
    return {**yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text()), "image": images}


def wait_until(what: str, look: Callable[[], Found | None], seconds: float = READY_SECONDS) -> Found:
    """Look twice a second until there is something to see, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.5)
    return found


class Namespace:
    """One namespace; objects are plain dicts."""

    def __init__(self, client: kubernetes.client.ApiClient, name: str) -> None:
        self.name = name
        self.helm = helm_python.Config(namespace=name)
        self.dynamic = DynamicClient(client)
        self._core = kubernetes.client.CoreV1Api(client)

    # Objects

    def _resource(self, kind: str) -> Any:
        return self.dynamic.resources.get(api_version=VERSIONS.get(kind, "v1"), kind=kind)

    def get(self, kind: str, name: str) -> Object | None:
        try:
            return dict(self._resource(kind).get(name=name, namespace=self.name).to_dict())
        except NotFoundError:
            return None

    def find(self, kind: str, selector: str = "") -> list[Object]:
        return list(self._resource(kind).get(namespace=self.name, label_selector=selector).to_dict()["items"])

    def create(self, body: Object) -> None:
        self._resource(body["kind"]).create(namespace=self.name, body=body)

    def delete(self, kind: str, name: str) -> None:
        self._resource(kind).delete(name=name, namespace=self.name, body={"propagationPolicy": "Background"})

    # Pods

    def pods(self, component: str) -> list[Object]:
        """Return the pods of a part of the release that are not on their way out."""
        found = self.find("Pod", f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={component}")
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def wait_ready(self, pod: str) -> None:
        wait_until(f"pod {pod} is ready", lambda: is_ready(self.get("Pod", pod)))

    def wait_ended(self, pod: str, seconds: float) -> int:
        """Wait until a pod's container has ended, and return its exit code."""
        ended = wait_until(f"pod {pod} has ended", lambda: _ended(self.get("Pod", pod)), seconds)
        return int(ended["exitCode"])

    def log(self, pod: str) -> str:
        return str(self._core.read_namespaced_pod_log(pod, self.name))

    def shell(self, pod: str, command: str) -> str:
        """Run a shell command in a pod, and return what it printed, errors too."""
        # A client of its own: `stream` changes the one it is given.
        core = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(self._core.api_client.configuration))
        asked = {"command": ["sh", "-c", command], "stdout": True, "stderr": True, "stdin": False, "tty": False}
        talk = stream(core.connect_get_namespaced_pod_exec, pod, self.name, _preload_content=False, **asked)
        talk.run_forever(timeout=SHELL_SECONDS)
        talk.sock.shutdown()  # `close` leaves a socket open that the other side has closed
        return str(talk.read_all())

    # HTTP, through the API server: "pods/<name>" or "services/<name>"

    def fetch(self, what: str, path: str) -> bytes:
        return bytes(self._request("GET", what, path).data)

    def ask(self, what: str, path: str, body: Object | None = None) -> Object:
        """POST a body, or GET without one, and return the JSON of the answer."""
        return dict(json.loads(self._request("GET" if body is None else "POST", what, path, body).data))

    def _request(self, method: str, what: str, path: str, body: Object | None = None) -> Any:
        url = f"/api/v1/namespaces/{self.name}/{what}:8000/proxy{path}"
        return self.dynamic.request(method, url, body=body, serialize=False)

    # The release

    def install(self, values: Object) -> None:
        """Install the chart as `emopfx`."""
        self.helm.install(CHART, RELEASE, values, namespace=self.name)

    def wait_server(self) -> Object:
        """Wait until the server that the Deployment now describes is the only one and ready; return its pod."""
        return wait_until("the server is ready", self._ready_server)

    def _ready_server(self) -> Object | None:
        deployment = self.get("Deployment", f"{RELEASE}-server")
        if deployment is None:
            return None
        pods, spec, status = self.pods("server"), deployment["spec"], deployment.get("status", {})
        current = status.get("observedGeneration") == deployment["metadata"]["generation"]
        ready = status.get("updatedReplicas") == status.get("readyReplicas") == spec["replicas"] == len(pods)
        return pods[0] if current and ready else None

    # When a test has failed

    def account(self) -> str:
        """Return what a person would look at first: pods, events, ends of logs."""
        lines = []
        for pod in self.find("Pod"):
            name, status = pod["metadata"]["name"], pod["status"]
            states = [container.get("state") for container in status.get("containerStatuses") or []]
            lines += [f"pod {name}: {status.get('phase')} {json.dumps(states)}"]
            with contextlib.suppress(ApiException):
                lines += [f"  {line}" for line in self.log(name).splitlines()[-LOG_LINES:]]
        for event in self.find("Event"):
            if event["type"] != "Normal":
                about = event["involvedObject"]
                lines.append(f"{about['kind']} {about['name']}: {event['reason']}: {event['message']}")
        return "\n".join(lines)


def is_ready(pod: Object | None) -> bool:
    """Whether a pod is ready."""
    conditions = pod["status"].get("conditions") or [] if pod else []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _ended(pod: Object | None) -> Object | None:
    containers = pod["status"].get("containerStatuses") or [] if pod else []
    return next((container["state"].get("terminated") for container in containers), None)


@contextmanager
def new_namespace(client: kubernetes.client.ApiClient) -> Iterator[Namespace]:
    """Make a namespace that enforces the `restricted` Pod Security standard, and delete it in the end."""
    core = kubernetes.client.CoreV1Api(client)
    name = f"emopfx-e2e-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    try:
        yield Namespace(client, name)
    finally:
        core.delete_namespace(name)
        # Else its pods would still be busy when the next tests begin.
        wait_until(f"the pods of {name} are gone", lambda: not core.list_namespaced_pod(name).items)
