"""A real HTTP server that answers as it is told to, in the shape of the server's API."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOOK_POINTS = [
    {"name": "input_layernorm.output", "width": 8, "layers": "all"},
    {"name": "post_attention_layernorm.output", "width": 8, "layers": "all"},
    {"name": "mlp.output", "width": 8, "layers": [0, 2]},
]
STRUCTURE = {
    "model": "tiny",
    "revision": None,
    "dtype": "bfloat16",
    "num_layers": 4,
    "context_length": 4096,
    "hook_points": HOOK_POINTS,
    "server": {"version": "0"},
}


@dataclass
class Reply:
    """What the server does with one request; `drop` closes the connection without an answer."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


def completion(content: str = "Answer: 7", request_id: str = "abc", **ndif: Any) -> Reply:
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return Reply(
        body={
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion",
            "created": 1,
            "model": "tiny",
            "choices": [choice],
            "usage": usage,
            "ndif": {"request_id": request_id, "save_dir": None, "files": [], **ndif},
        }
    )


def error(status: int, message: str, **headers: str) -> Reply:
    return Reply(status, {"error": {"message": message, "type": "x", "param": None, "code": None}}, headers)


@dataclass
class Request:
    """What the server was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class ScriptedServer:
    """A running server: where it is, and what it was asked so far."""

    url: str
    requests: list[Request]
    peers: list[tuple[str, int]]

    @property
    def bodies(self) -> list[Any]:
        return [request.body for request in self.requests]


@contextmanager
def serve(answer: Callable[[Request], Reply]) -> Iterator[ScriptedServer]:
    """Run a server on a free port; `answer` may be called by several threads at once."""
    requests: list[Request] = []
    peers: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.command, self.path, dict(self.headers), json.loads(text) if text else None)
            requests.append(request)
            peers.append(self.client_address[:2])
            reply = answer(request)
            if reply.drop:
                self.close_connection = True
                return
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(data))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield ScriptedServer(f"http://127.0.0.1:{server.server_port}", requests, peers)
        finally:
            server.shutdown()
            thread.join()


def in_turn(*replies: Reply) -> Callable[[Request], Reply]:
    """Answer the first request with the first reply and so on; the last one answers all that follow."""
    left = list(replies)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]
