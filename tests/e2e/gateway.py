"""A way to the API server that can be closed for a while."""

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import kubernetes

from tests.e2e.runs import kubeconfig


class Gateway:
    """Carries connections on a port of this machine to the API server, while it is open.

    Use it as a context manager.
    """

    def __init__(self, client: kubernetes.client.ApiClient) -> None:
        address = urlsplit(client.configuration.host)
        self._server = (str(address.hostname), address.port or 443)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._open = True
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> "Gateway":
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        # Closing alone would not wake the thread that waits for connections.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.close()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def kubeconfig(self, folder: Path) -> Path:
        """Write a kubeconfig that leads through here, and return its path."""
        cluster = {"server": f"https://127.0.0.1:{self._port}", "tls-server-name": self._server[0]}
        return kubeconfig(folder, cluster)

    def open(self) -> None:
        self._open = True

    def close(self) -> None:
        """Cut what is connected, and connect nothing more."""
        self._open = False
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._open:
                near.close()
                continue
            far = socket.create_connection(self._server)
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=_pump, args=(source, sink)))
                self._threads[-1].start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            sink.sendall(block)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
