"""A server of a release, as far as runs in a cluster ask it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.emopfx.kubernetes.memory import Memory
from tests.emopfx.scripted_server import STRUCTURE, Reply, Request, error, serve

REPORT: dict[str, Any] = {
    "created": "now",
    "expected": 8,
    "found": 8,
    "missing": [],
    "statistics": {"variants": []},
}


def answer(request: Request) -> Reply:
    """Answer as a server does that is ready, and sees what the Jobs have written."""
    if request.path == "/v1/model/structure":
        return Reply(body={**STRUCTURE, "dtype": "float32"})
    if request.path.endswith("/experiment_config.json"):
        return Reply(body=json.dumps({"name": "nano"}).encode())
    if request.path.endswith("/report.json"):
        return Reply(body=json.dumps(REPORT).encode())
    return Reply(body={}) if request.path == "/readyz" else error(404, "nothing there")


@contextmanager
def installed(release: str = "emopfx", **job: Any) -> Iterator[Memory]:
    """A cluster in which a release is installed and its server is ready."""
    with serve(answer) as server:
        cluster = Memory()
        cluster.install(release, server.url, **job)
        yield cluster
