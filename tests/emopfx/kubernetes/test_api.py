import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import kubernetes
import pytest

from emopfx.errors import InputError, RunError
from emopfx.kubernetes import api
from emopfx.kubernetes.api import Cluster


@pytest.fixture
def hung_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an API server behind a gateway that takes every call and hangs up."""
    monkeypatch.setattr(api, "FIRST_PATIENCE", 0.5)
    monkeypatch.setattr(api, "PAUSE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def cluster_at(host: str) -> Cluster:
    configuration = kubernetes.client.Configuration(host=host)
    configuration.retries = False
    return Cluster(kubernetes.client.ApiClient(configuration), "default", inside=False)


def test_a_lost_connection_is_no_refusal(hung_up: str) -> None:
    with pytest.raises(RunError) as caught:
        cluster_at(hung_up).get("Job", "nano")
    assert str(caught.value).startswith(f"the cluster at {hung_up} does not answer: ")
    assert "\n" not in str(caught.value)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server that answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PATCH = do_GET

        def log_message(self, *message: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"<html>"), (200, b"<html>"), (200, b"{}"), (200, b"[1]"), (200, b"\xff"), (404, b'{"detail": "no"}')],
)
def test_a_server_of_another_kind_is_told_apart(status: int, body: bytes) -> None:
    job = {"kind": "Job", "metadata": {"name": "nano"}}
    with answering(status, body) as host:
        for ask in (partial(cluster_at(host).get, "Job", "nano"), partial(cluster_at(host).create, job)):
            with pytest.raises(InputError, match=f"^the server at {host} is not a Kubernetes API server; see the kube"):
                ask()
        with pytest.raises(InputError, match="is not a Kubernetes API server"):
            cluster_at(host).find("ConfigMap", "a=b")


REFUSAL = {"kind": "Status", "message": 'namespaces "default" not found', "details": {"kind": "namespaces"}}


@pytest.mark.parametrize(
    ("refusal", "kind", "sentence"),
    [
        (REFUSAL, InputError, "there is no namespace default in the cluster"),
        (
            {"kind": "Status", "message": "no such thing"},
            RunError,
            "the cluster refused to create Job .*: no such thing",
        ),
    ],
)
def test_a_namespace_is_missing_only_where_the_cluster_says_so(
    monkeypatch: pytest.MonkeyPatch, refusal: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    """The API server is a real one everywhere else; here only its words count."""
    error = kubernetes.client.exceptions.ApiException(status=404, reason="Not Found")
    error.body = json.dumps(refusal)

    def refuse(self: Cluster, kind: str) -> None:
        raise error

    monkeypatch.setattr(Cluster, "_resource", refuse)
    with pytest.raises(kind, match=sentence):
        cluster_at("http://127.0.0.1:1").create({"kind": "Job", "metadata": {"name": "nano"}})
