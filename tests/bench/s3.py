"""How fast push and pull are against boto3's upload_file and download_file in a loop, and against `aws s3 sync`.

Each is a process of its own that moves the same files to and from the same S3 service, in turn, several times over;
what is reported is the median of the ratios within a round, so that a machine whose speed drifts cancels out.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import boto3
from rich.console import Console
from rich.table import Table

from emopfx.layout import Layout
from tests.emopfx.storage.s3_service import CREDENTIALS, content, make_requests, moto

BUCKET = "bench"
NAME = "nano"
LOOP = """
import sys, boto3
from pathlib import Path
way, url, bucket, prefix, root = sys.argv[1:]
client = boto3.client("s3", endpoint_url=url)
if way == "up":
    for path in sorted(path for path in Path(root).rglob("*") if path.is_file()):
        client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(root)}")
else:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page["Contents"]:
            path = Path(root, item["Key"].removeprefix(f"{prefix}/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, item["Key"], str(path))
"""


@dataclass(frozen=True)
class Tree:
    """The files of so many requests, about so many bytes each."""

    name: str
    requests: int
    bytes_each: int

    def make(self, root: Path) -> Layout:
        layout = Layout(root / self.name, NAME)
        # Four layers, two hook points, four bytes.
        make_requests(layout, self.requests, tokens=16, width=self.bytes_each // (4 * 2 * 4 * 16))
        return layout


TREES = (Tree("many small", 400, 100_000), Tree("few large", 5, 100_000_000))


def commands(way: str, url: str, prefix: str, source: Layout, aws: str) -> dict[str, tuple[list[str], Path]]:
    """Return, for each contender, the command that moves the activations and the folder that it reads or writes."""
    places = {name: source.root.parent / f"{name}-down" for name in ("ours", "loop", "sync")}
    here = {name: source.folder / "activations" if way == "up" else place for name, place in places.items()}
    ours_root = source.root if way == "up" else places["ours"]
    flags = [
        "--name",
        NAME,
        "--results",
        str(ours_root),
        "--endpoint-url",
        url,
        "--uri",
        f"s3://{BUCKET}/{prefix}-ours",
    ]
    remote = f"s3://{BUCKET}/{prefix}-sync"
    order = [str(here["sync"]), remote] if way == "up" else [remote, str(here["sync"])]
    return {
        "ours": (
            [sys.executable, "-m", "emopfx.cli", "activations", {"up": "push", "down": "pull"}[way], *flags],
            here["ours"],
        ),
        "loop": ([sys.executable, "-c", LOOP, way, url, BUCKET, f"{prefix}-loop", str(here["loop"])], here["loop"]),
        "sync": ([aws, "s3", "sync", "--only-show-errors", "--endpoint-url", url, *order], here["sync"]),
    }


def measure(tree: Tree, source: Layout, url: str, aws: str, prefix: str) -> Iterator[tuple[str, str, float]]:
    """Yield the way, the contender and its seconds."""
    expected = sum(map(len, content(source.folder / "activations").values()))
    for way in ("up", "down"):
        for name, (command, folder) in commands(way, url, prefix, source, aws).items():
            start = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            yield way, name, time.monotonic() - start
            if way == "down":
                found = folder / NAME / "activations" if name == "ours" else folder
                assert sum(map(len, content(found).values())) == expected, f"{name} lost something"
                shutil.rmtree(folder)


def run(url: str, aws: str, rounds: int, root: Path) -> dict[str, Any]:
    """Measure all trees; return the ratios and the speeds."""
    client = boto3.client("s3", endpoint_url=url)
    result: dict[str, Any] = {"ratios": {}, "mb_per_second": {}}
    for tree in TREES:
        source = tree.make(root)
        megabytes = sum(map(len, content(source.folder / "activations").values())) / 1e6
        times: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds):
            client.create_bucket(Bucket=BUCKET)
            for way, name, seconds in measure(tree, source, url, aws, f"round-{number}"):
                times.setdefault((way, name), []).append(seconds)
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
                for item in page["Contents"]:
                    client.delete_object(Bucket=BUCKET, Key=item["Key"])
            client.delete_bucket(Bucket=BUCKET)
        for way in ("up", "down"):
            ours = times[way, "ours"]
            for name in ("loop", "sync"):
                pairs = zip(times[way, name], ours, strict=True)
                result["ratios"][f"{tree.name}, {way}, vs {name}"] = round(median(a / b for a, b in pairs), 2)
            for name in ("ours", "loop", "sync"):
                result["mb_per_second"][f"{tree.name}, {way}, {name}"] = round(megabytes / median(times[way, name]), 1)
    client.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aws", required=True, help="the AWS CLI's program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "s3.json")
    arguments = parser.parse_args()
    os.environ |= CREDENTIALS
    version = subprocess.run([arguments.aws, "--version"], check=True, capture_output=True, text=True).stdout.split()[0]
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as root, moto() as url:
        result = run(url, arguments.aws, arguments.rounds, Path(root))
    result |= {"rounds": arguments.rounds, "boto3": boto3.__version__, "aws": version}
    # What else the machine had to do: with more than a core's worth, the ratios say less.
    load = [round(busy, 1) for busy in (load_before, os.getloadavg()[0])]
    result["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "load before and after": load}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("how many times as fast as", "ratio")
    for name, ratio in result["ratios"].items():
        table.add_row(name, f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
