"""Asks the server for one captured completion, and checks the files that it says it has written."""

import hashlib
import json
import os
import sys
import time
import uuid
from typing import Any

import httpx

READY_SECONDS = 120


def wait_ready(server: httpx.Client) -> None:
    """Wait until the server takes requests."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            answer = server.get("/readyz")
            reason = answer.text
            if answer.is_success:
                return
        except httpx.TransportError as error:
            reason = repr(error)
        if time.monotonic() > deadline:
            sys.exit(f"the server was not ready within {READY_SECONDS} s: {reason}")
        time.sleep(1)


def complete(server: httpx.Client) -> dict[str, Any]:
    """Ask for one short answer, capturing the first and the last layer, and return what was captured."""
    structure = server.get("/v1/model/structure").raise_for_status().json()
    body = {
        "model": structure["model"],
        "messages": [{"role": "user", "content": "What is 6 times 7?"}],
        "max_tokens": 8,
        "temperature": 0,
        "ndif": {
            "request_id": f"helm-test-{uuid.uuid4()}",
            "save_dir": "helm-test",
            "layers": [0, -1],
            "hook_points": structure["default_hook_points"],
        },
    }
    answer = server.post("/v1/chat/completions", json=body)
    if not answer.is_success:
        sys.exit(f"the server refused a completion ({answer.status_code}): {answer.text}")
    content = answer.json()
    print(f"{structure['model']} answered {content['choices'][0]['message']['content']!r}")
    captured: dict[str, Any] = content["ndif"]
    return captured


def check_files(server: httpx.Client, captured: dict[str, Any]) -> None:
    """Fetch each file and compare it with what the answer said: size, checksum, tensors and their shapes."""
    folder = f"/v1/activations/{captured['save_dir']}"
    listed = {entry["name"]: entry["bytes"] for entry in server.get(folder).raise_for_status().json()["entries"]}
    if {file["name"] for file in captured["files"]} != {"activations.safetensors", "metadata.json"}:
        sys.exit(f"the answer names other files than it should: {captured['files']}")
    for file in captured["files"]:
        content = server.get(f"{folder}/{file['name']}").raise_for_status().content
        sizes = {"sent": len(content), "listed": listed.get(file["name"]), "said": file["bytes"]}
        if len(set(sizes.values())) > 1:
            sys.exit(f"{file['name']}: its sizes in bytes differ: {sizes}")
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            sys.exit(f"{file['name']}: another SHA-256 than the answer said")
        if file["name"].endswith(".safetensors"):
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            shapes = {name: header[name]["shape"] for name in captured["shapes"]}
            if not shapes or shapes != captured["shapes"]:
                sys.exit(f"{file['name']}: holds {shapes}, the answer said {captured['shapes']}")
        print(f"{captured['save_dir']}/{file['name']}: {file['bytes']} bytes, as the answer said")


key = os.environ.get("EMOPFX_API_KEY")
headers = {"Authorization": f"Bearer {key}"} if key else {}
with httpx.Client(base_url=sys.argv[1], headers=headers, timeout=120, trust_env=False) as client:
    wait_ready(client)
    check_files(client, complete(client))
