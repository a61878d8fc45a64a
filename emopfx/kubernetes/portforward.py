"""A way to the server: directly inside the cluster, from outside through the API server to one of its pods."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import kubernetes
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward

from emopfx.errors import RunError
from emopfx.kubernetes import jobs, names
from emopfx.kubernetes.api import Cluster
from emopfx.server_api import ServerApi

PORT = 8000
BLOCK = 1 << 18


@contextmanager
def server(cluster: Cluster, release: str) -> Iterator[ServerApi]:
    """Yield a client of a release's server.

    Raises:
        RunError: If no server is ready.
    """
    if cluster.inside:
        with ServerApi(jobs.server_url(jobs.template(cluster, release, "generate"))) as api:
            yield api
        return
    ready_pod(cluster, release)
    with forwarded(cluster, release) as url, ServerApi(url) as api:
        yield api


def ready_pod(cluster: Cluster, release: str) -> str:
    """Return the name of a server's pod that is ready.

    Raises:
        RunError: If there is none.
    """
    for pod in cluster.find("Pod", names.selector(names.component(release, "server"))):
        conditions = pod.get("status", {}).get("conditions") or []
        ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
        if ready and not pod["metadata"].get("deletionTimestamp"):
            return str(pod["metadata"]["name"])
    raise RunError(f"no server of release {release} is ready in {cluster.namespace}")


@contextmanager
def forwarded(cluster: Cluster, release: str) -> Iterator[str]:
    """Yield an address on this machine whose connections go to port 8000 of a server's pod that is ready by then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, cluster, release), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            # Closing alone would not wake the thread that waits for connections.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, cluster: Cluster, release: str) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_bridge, args=(near, cluster, release), daemon=True).start()


def _bridge(near: socket.socket, cluster: Cluster, release: str) -> None:
    # A client of its own: `portforward` changes the one it gets while it connects.
    core = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(cluster.client.configuration))
    try:
        pod = ready_pod(cluster, release)
        forward = portforward(core.connect_get_namespaced_pod_portforward, pod, cluster.namespace, ports=str(PORT))
    except (RunError, ApiException, OSError):
        # Whoever connected sees a closed connection, and says so.
        near.close()
        return
    far = forward.socket(PORT)
    far.setblocking(True)
    back = threading.Thread(target=_pump, args=(far, near), daemon=True)
    back.start()
    _pump(near, far)
    back.join()
    near.close()
    far.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(BLOCK):
            sink.sendall(block)
    # The other direction ends too: HTTP has no half-open connections.
    for side in (source, sink):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
