"""A round trip of 2,000 requests' files, about a gigabyte, with a kill half way; prints what each step sent."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
from rich.console import Console

from emopfx.layout import Layout
from tests.emopfx.storage.s3_service import CREDENTIALS, Gate, content, gate, make_requests, moto

REQUESTS = 2000
BYTES_EACH = 500_000


def main() -> None:
    os.environ |= CREDENTIALS
    with tempfile.TemporaryDirectory() as root, moto() as service, gate(service) as door:
        client = boto3.client("s3", endpoint_url=service)
        client.create_bucket(Bucket="trip")
        client.close()
        round_trip(Layout(Path(root) / "results", "nano"), door)


def round_trip(layout: Layout, door: Gate) -> None:
    print = Console().print
    make_requests(layout, REQUESTS, tokens=16, width=BYTES_EACH // (4 * 2 * 4 * 16))
    before = content(layout.folder / "activations")
    print(f"{len(before)} files, {sum(map(len, before.values())) / 1e6:.0f} MB")

    def command(name: str) -> list[str]:
        place = ["--name", layout.name, "--results", str(layout.root), "--uri", "s3://trip", "--endpoint-url", door.url]
        return [sys.executable, "-m", "emopfx.cli", "activations", name, *place]

    def step(name: str) -> None:
        door.asked.clear()
        start = time.monotonic()
        done = subprocess.run(command(name), check=True, stderr=subprocess.PIPE, text=True)
        said = done.stderr.splitlines()[-1]
        print(f"{name}: {said}; {dict(door.asked)} in {time.monotonic() - start:.0f} s")

    with subprocess.Popen(command("push"), stderr=subprocess.DEVNULL) as process:
        while door.asked["PUT"] < REQUESTS and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    first = door.asked["PUT"]
    print(f"push, killed: {dict(door.asked)}")
    step("push")
    assert 2 * REQUESTS - first <= door.asked["PUT"] - 1 <= 2 * REQUESTS - first + 16
    step("verify")
    step("push")
    assert door.asked["PUT"] == 0
    shutil.rmtree(layout.root)
    step("pull")
    assert content(layout.folder / "activations") == before
    print("all files are byte for byte the same")


if __name__ == "__main__":
    main()
