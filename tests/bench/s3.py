"""How fast push and pull are against boto3's upload_file and download_file in a loop, and against `aws s3 sync`.

Each is a process of its own that moves the same files to and from the same S3 service, in turn, several times over,
each time another one first; what is reported is the median of the ratios within a round, so that a machine whose speed
drifts cancels out. The service is moto, on this machine. One process serves all, so it is what most is waited for; so
that it is also seen how well each waits, it is measured with answers that come late, too, as they do from S3 itself.
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


SMALL, LARGE = Tree("many small", 400, 100_000), Tree("few large", 5, 100_000_000)
# As large as files are that go in one piece, and so large that they go in parts.
LARGER, PARTS = Tree("two larger", 2, 250_000_000), Tree("two in parts", 2, 500_000_000)
# Seconds by which answers are late; S3 itself takes some tens of milliseconds to begin an answer.
CASES = ((0.0, SMALL), (0.0, LARGE), (0.0, LARGER), (0.0, PARTS), (0.02, SMALL), (0.02, LARGE))
# Files are kept in memory, if that can be: what a disk writes later would be counted against who comes next.
MEMORY = Path("/dev/shm")


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


def measure(tree: Tree, source: Layout, url: str, aws: str, number: int) -> Iterator[tuple[tuple[str, str], float]]:
    """Yield the way and the contender, and its seconds."""
    expected = sum(map(len, content(source.folder / "activations").values()))
    for way in ("up", "down"):
        contenders = list(commands(way, url, f"round-{number}", source, aws).items())
        first = number % len(contenders)
        for name, (command, folder) in contenders[first:] + contenders[:first]:
            start = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            yield (way, name), time.monotonic() - start
            if way == "down":
                found = folder / NAME / "activations" if name == "ours" else folder
                assert sum(map(len, content(found).values())) == expected, f"{name} lost something"
                shutil.rmtree(folder)


def rounds_of(tree: Tree, source: Layout, url: str, aws: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each round by way and contender."""
    client = boto3.client("s3", endpoint_url=url)
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        client.create_bucket(Bucket=BUCKET)
        for what, seconds in measure(tree, source, url, aws, number):
            times.setdefault(what, []).append(seconds)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            client.delete_objects(
                Bucket=BUCKET, Delete={"Objects": [{"Key": item["Key"]} for item in page["Contents"]]}
            )
        client.delete_bucket(Bucket=BUCKET)
    client.close()
    return times


def run(aws: str, rounds: int, root: Path) -> dict[str, Any]:
    """Measure all trees; return the ratios, each with its lowest and highest round, and the speeds."""
    result: dict[str, Any] = {"ratios": {}, "lowest_and_highest": {}, "mb_per_second": {}}
    for delay, tree in CASES:
        source = tree.make(root / str(delay))
        megabytes = sum(map(len, content(source.folder / "activations").values())) / 1e6
        with moto(delay) as url:
            # Those that are late take long, and differ less.
            times = rounds_of(tree, source, url, aws, -(-rounds // 2) if delay else rounds)
        for way in ("up", "down"):
            what = f"{tree.name}, {delay * 1e3:.0f} ms late, {way}"
            for name in ("loop", "sync"):
                found = sorted(theirs / ours for theirs, ours in zip(times[way, name], times[way, "ours"], strict=True))
                result["ratios"][f"{what}, vs {name}"] = round(median(found), 2)
                result["lowest_and_highest"][f"{what}, vs {name}"] = [round(found[0], 2), round(found[-1], 2)]
            for name in ("ours", "loop", "sync"):
                result["mb_per_second"][f"{what}, {name}"] = round(megabytes / median(times[way, name]), 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aws", required=True, help="the AWS CLI's program")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "s3.json")
    arguments = parser.parse_args()
    os.environ |= CREDENTIALS
    version = subprocess.run([arguments.aws, "--version"], check=True, capture_output=True, text=True).stdout.split()[0]
    load_before = os.getloadavg()[0]
    if MEMORY.is_dir():
        tempfile.tempdir = os.environ["TMPDIR"] = str(MEMORY)
    with tempfile.TemporaryDirectory() as root:
        result = run(arguments.aws, arguments.rounds, Path(root))
    result |= {"rounds": arguments.rounds, "boto3": boto3.__version__, "aws": version}
    # What else the machine had to do: with more than a core's worth, the ratios say less.
    load = [round(busy, 1) for busy in (load_before, os.getloadavg()[0])]
    result["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "load before and after": load}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("how many times as fast as", "ratio", "in single rounds")
    for name, ratio in result["ratios"].items():
        table.add_row(name, f"{ratio:.2f}", "{:.2f} to {:.2f}".format(*result["lowest_and_highest"][name]))
    Console().print(table)


if __name__ == "__main__":
    main()
