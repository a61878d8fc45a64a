"""What the pod of `helm test` runs, against a server and against one whose files are damaged."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.server.serving import RunningServer

SCRIPT = Path(__file__).parents[2] / "charts" / "emopfx" / "files" / "check_capture.py"


@contextmanager
def damaging(url: str) -> Iterator[str]:
    """Yield the address of a proxy that changes the last byte of every activations file."""

    class Damaging(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward(b"")

        def do_POST(self) -> None:
            self.forward(self.rfile.read(int(self.headers["content-length"])))

        def forward(self, body: bytes) -> None:
            headers = {"content-type": "application/json"}
            answer = httpx.request(self.command, url + self.path, content=body, headers=headers, timeout=60)
            content = answer.content
            if self.path.endswith(".safetensors"):
                content = content[:-1] + bytes([content[-1] ^ 1])
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Damaging) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()
        thread.join()


def run(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, url], capture_output=True, text=True, check=False)


def test_passes_against_a_server(tiny_server: RunningServer) -> None:
    done = run(tiny_server.url)
    assert done.returncode == 0, done.stderr
    assert "activations.safetensors" in done.stdout
    assert "metadata.json" in done.stdout


def test_fails_when_a_file_is_damaged(tiny_server: RunningServer) -> None:
    with damaging(tiny_server.url) as url:
        done = run(url)
    assert done.returncode == 1
    assert "activations.safetensors: another SHA-256 than the answer said" in done.stderr
