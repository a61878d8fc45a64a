"""An S3 service that is a process of its own, a gate in front of it that counts and fails, and files to keep in it."""

import hashlib
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save_file

from emopfx.layout import Layout, write_json
from emopfx.storage import client, ranges

SERVE = """
import logging, sys, threading, time
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").disabled = True
answer = DomainDispatcherApplication.__call__
def answer_late(*request):
    time.sleep(float(sys.argv[1]))
    return answer(*request)
DomainDispatcherApplication.__call__ = answer_late
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""
# Any will do; the tests look for the second one where it must not be.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIDFORTHETESTS",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-stays-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Of one connection only, or set by the gate itself.
OWN_HEADERS = {"connection", "transfer-encoding", "date", "server", "content-length"}


def give_up_after(attempts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send each request so often at most."""
    for module in (client, ranges):
        monkeypatch.setattr(module, "ATTEMPTS", attempts)


@contextmanager
def moto(delay: float = 0) -> Iterator[str]:
    """Run moto's S3 server, whose answers come `delay` seconds late; yields its address."""
    with subprocess.Popen([sys.executable, "-c", SERVE, str(delay)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@dataclass
class Gate:
    """What stands between a client and the service.

    Attributes:
        url: Its address.
        asked: How often each operation was asked for, such as "PUT", "HEAD", "GET" and "LIST".
        received: How many bytes of content clients have received by GET.
        failing: The share of requests that fail, some by an error and some by a lost connection.
        delay: Seconds by which each request is late.
        closed: Whether no request gets through.
        closing_after: By operation, after how many more of them nothing gets through any more.
        away_seconds: After how long something gets through again then; 0 is never.
        lost: By operation, how many of the next ones are done, but not answered.
        refused: Requests whose path has this in it are not allowed.
        broken: How many of the next answers to GET end half way.
    """

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    received: int = 0
    failing: float = 0.0
    delay: float = 0.0
    closed: bool = False
    closing_after: dict[str, int] = field(default_factory=dict)
    away_seconds: float = 0.0
    lost: Counter[str] = field(default_factory=Counter)
    refused: str | None = None
    broken: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str) -> None:
        """Count a request, and close where it is one too many."""
        self.asked[name] += 1
        if name not in self.closing_after:
            return
        self.closing_after[name] -= 1
        if self.closing_after[name] < 0 and not self.closed:
            self.closed = True
            if self.away_seconds:
                del self.closing_after[name]
                threading.Timer(self.away_seconds, self.open).start()

    def open(self) -> None:
        """Let requests through again."""
        self.closed = False


@contextmanager
def gate(service: str) -> Iterator[Gate]:
    """Serve a gate before a service."""
    control = Gate()
    target = urlsplit(service).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        connection_there: http.client.HTTPConnection | None = None

        def log_message(self, *arguments: Any) -> None:
            pass

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with control.lock:
                name = operation(self.command, self.path)
                control.count(name)
                unanswered = control.lost[name] > 0
                control.lost[name] -= unanswered
                fails, lost = control.chance.random() < control.failing, control.chance.random() < 0.5
                closed = control.closed  # for this request; a later one may close
            time.sleep(control.delay)
            if closed or (fails and lost):
                self.close_connection = True
            elif unanswered:
                self.ask(body)
                self.close_connection = True
            elif control.refused and control.refused in self.path:
                self.answer(403, {}, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
            elif fails:
                self.answer(503, {}, b"<Error><Code>ServiceUnavailable</Code><Message>no</Message></Error>")
            else:
                self.answer(*self.ask(body))

        def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            if self.connection_there is None:
                self.connection_there = http.client.HTTPConnection(target, timeout=60)
            headers = {key: value for key, value in self.headers.items() if key.lower() != "expect"}
            self.connection_there.request(self.command, self.path, body, headers)
            reply = self.connection_there.getresponse()
            kept = {key: value for key, value in reply.getheaders() if key.lower() not in OWN_HEADERS}
            content = reply.read()
            length = str(len(content)) if self.command != "HEAD" else reply.getheader("Content-Length", "0")
            return reply.status, {**kept, "Content-Length": length}, content

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            length = str(len(content))
            with control.lock:
                breaks = self.command == "GET" and status in (200, 206) and control.broken > 0
                control.broken -= breaks
                if breaks:
                    content, self.close_connection = content[: len(content) // 2], True
                # Before the client has anything of it: it may look at once.
                control.received += len(content) * (self.command == "GET")
            self.send_response(status)
            for key, value in {"Content-Length": length, **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()
            if self.connection_there is not None:
                self.connection_there.close()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *arguments: Any) -> None:
            """A client that was killed breaks its connections."""

    with Server(("127.0.0.1", 0), Handler) as server:
        control.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield control
        finally:
            server.shutdown()
            thread.join()


def operation(method: str, path: str) -> str:
    """Name what a request does."""
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    if method == "GET" and ("list-type" in query or "uploads" in query):
        return "LIST"
    return "PUT part" if method == "PUT" and "partNumber" in query else method


def make_requests(layout: Layout, count: int, *, tokens: int = 8, width: int = 16, layers: int = 4) -> None:
    """Write the files of so many requests, half of each variant, and their manifest."""
    random_numbers = np.random.default_rng(0)
    manifest = {}
    for number in range(count):
        variant, sample = ("control", "calm")[number % 2], f"a_{number // 2 + 1:04}"
        save_dir = f"{layout.save_dir(f'{variant}/{sample}')}/r{number:05}"
        folder = layout.root / save_dir
        folder.mkdir(parents=True)
        tensors: dict[str, np.ndarray[Any, Any]] = {
            f"layers.{layer}.{hook_point}": random_numbers.random((tokens, width), np.float32)
            for layer in range(layers)
            for hook_point in ("input_layernorm.output", "mlp.output")
        }
        tensors |= {"token_ids": np.arange(tokens), "positions": np.arange(tokens)}
        save_file(tensors, folder / "activations.safetensors", metadata={"model": "tiny"})
        (folder / "metadata.json").write_text(json.dumps({"tokens": tokens, "number": number}))
        manifest[f"{variant}/{sample}"] = {
            "save_dir": save_dir,
            "request_id": folder.name,
            "uri": None,
            "files": [describe(folder / name) for name in ("activations.safetensors", "metadata.json")],
            "tokens": tokens,
        }
    write_json(layout.manifest, manifest)


def describe(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"name": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def content(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
