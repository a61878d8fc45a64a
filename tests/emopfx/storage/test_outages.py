"""What is left, and what goes on, where S3 stops, refuses or loses an answer, in every phase of push and pull."""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emopfx.layout import Layout, write_json, write_text
from emopfx.storage import inventory, manifest, parallel, pull, push, ranges, s3
from emopfx.storage.client import WORKERS
from emopfx.storage.manifest import Entry
from emopfx.storage.parts import PART_BYTES
from emopfx.storage.pull import Selection
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import Away, Refused
from emopfx.storage.sender import Sender
from emopfx.storage.source import PushedFiles
from emopfx.storage.traffic import Stopped
from tests.emopfx.storage.s3_service import Gate, content, describe, give_up_after, make_requests
from tests.emopfx.storage.test_faults import missing

LARGE = 5 * PART_BYTES + 7

pytestmark = pytest.mark.usefixtures("soon_in_parts")


@pytest.fixture
def hasty(uri: str, door: Gate, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Return a bucket that soon gives up a request, so that what comes after that is seen."""
    give_up_after(1, monkeypatch)
    monkeypatch.setattr(parallel, "PAUSES", (0.3, 2.0))
    return Bucket(uri, door.url)


def large(layout: Layout) -> Entry:
    """Write a request with a file of several parts, and the manifest; return its entry."""
    make_requests(layout, 1)
    entry = manifest.read(layout)["control/a_0001"]
    path = layout.root / entry["save_dir"] / "activations.safetensors"
    path.write_bytes(os.urandom(LARGE))
    entry["files"] = [describe(path), entry["files"][1]]  # type: ignore[list-item]
    write_json(layout.manifest, {"control/a_0001": entry})
    return entry


@pytest.mark.parametrize(
    ("operation", "after"), [("GET", 0), ("LIST", 0), ("PUT", 5), ("HEAD", 0), ("PUT", 20), ("LIST", 1)]
)
def test_push_waits_for_a_service_that_stops_in_any_phase(
    layout: Layout, hasty: Bucket, door: Gate, operation: str, after: int
) -> None:
    make_requests(layout, 10)
    door.away_seconds = 1.0
    door.closing_after = {operation: after}
    with hasty as bucket:
        push.activations(layout, bucket)
    assert door.closing_after == {}
    with Bucket(bucket.root, door.url) as again:
        inventory.verify(layout, again)


@pytest.mark.parametrize(("operation", "after"), [("GET", 0), ("GET", 3), ("LIST", 0), ("HEAD", 2)])
def test_pull_waits_for_a_service_that_stops_in_any_phase(
    layout: Layout, hasty: Bucket, door: Gate, tmp_path: Path, operation: str, after: int
) -> None:
    make_requests(layout, 6)
    write_text(layout.folder / "report.json", "{}")
    other = Layout(tmp_path / "other", "nano")
    with hasty as bucket:
        push.activations(layout, bucket)
        push.results(layout, bucket)
        door.away_seconds = 1.0
        door.closing_after = {operation: after}
        pull.activations(other, bucket, Selection())
        pull.results(other, bucket)
        inventory.verify(other, bucket)
    assert door.closing_after == {}
    assert content(other.folder / "activations") == content(layout.folder / "activations")


def test_analysis_waits_for_a_service_that_stops(layout: Layout, hasty: Bucket, door: Gate) -> None:
    make_requests(layout, 1)
    entry = manifest.read(layout)["control/a_0001"]
    name, file = manifest.paths(entry)[0]
    whole = (layout.root / name).read_bytes()
    with hasty as bucket:
        push.activations(layout, bucket, delete_local=True)
    door.away_seconds = 1.0
    door.closing_after = {"GET": 1}
    with PushedFiles(layout) as files:
        assert files.read(name, 0, 100) + files.read(name, 100, file["bytes"]) == whole


@pytest.mark.parametrize("operation", ["GET", "LIST", "PUT", "HEAD"])
def test_an_outage_in_any_phase_lists_all_that_is_not_confirmed(
    layout: Layout, hasty: Bucket, door: Gate, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "PAUSES", (0.01,))
    make_requests(layout, 4)
    door.closing_after = {operation: 0}
    with hasty as bucket:
        assert missing(lambda: push.activations(layout, bucket)) == manifest.read(layout).keys()
        door.closing_after, door.closed = {}, False
        push.activations(layout, bucket)
        assert manifest.read_remote(bucket, "nano") == manifest.read(layout)


@pytest.mark.parametrize("operation", ["HEAD", "LIST"])
def test_an_outage_lists_all_results(
    layout: Layout, hasty: Bucket, door: Gate, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "PAUSES", (0.01,))
    names = {"experiment_config.json", "report.json", "calm/a/sample.json"}
    for name in names:
        write_text(layout.folder / name, "{}")
    door.closing_after = {operation: 0}
    with hasty as bucket:
        assert missing(lambda: push.results(layout, bucket)) == {f"nano/{name}" for name in names}


def test_a_service_whose_every_answer_is_late_is_used_all_the_same(
    layout: Layout, bucket: Bucket, door: Gate, tmp_path: Path
) -> None:
    make_requests(layout, 12)
    other = Layout(tmp_path / "other", "nano")
    door.delay = 0.5
    push.activations(layout, bucket)
    pull.activations(other, bucket, Selection())
    assert content(other.folder / "activations") == content(layout.folder / "activations")


def test_what_one_object_is_refused_costs_no_other_one(layout: Layout, bucket: Bucket, door: Gate) -> None:
    make_requests(layout, 40)
    door.refused = "r00003/activations"
    assert missing(lambda: push.activations(layout, bucket)) == {"calm/a_0002"}
    with pytest.raises(Refused, match=r"r00003/activations.safetensors: no \(AccessDenied\)"):
        bucket.put_bytes(b"", "nano/activations/calm/a_0002/r00003/activations.safetensors")


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("before", [None, b"other"])
def test_an_answer_that_is_lost_is_no_failure(
    tmp_path: Path, bucket: Bucket, door: Gate, size: int, before: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(os.urandom(size))
    if before is not None:
        bucket.put_bytes(before, "x")
    sender = Sender(bucket, tmp_path, {"x"}, replace=True)
    # The answer to the request that makes the object, which for a large file comes after all parts.
    counted, last = door.count, {1000: "PUT", LARGE: "POST"}[size]

    def lose_the_last(name: str) -> None:
        counted(name)
        door.lost[last] += name == ("PUT" if last == "PUT" else "PUT part") and door.asked[name] == losing

    losing = 6 if size == LARGE else door.asked["PUT"] + 1
    monkeypatch.setattr(door, "count", lose_the_last)
    sender.send_result(tmp_path / "x")
    assert bucket.read("x") == (tmp_path / "x").read_bytes()
    assert list(bucket.unfinished("")) == []


def test_parts_that_are_there_are_not_sent_again(layout: Layout, hasty: Bucket, door: Gate) -> None:
    entry = large(layout)
    key = manifest.paths(entry)[0][0]
    with hasty as bucket:
        door.closing_after = {"PUT part": 3}
        with pytest.raises(Away):
            bucket.put(layout.root / key, key, entry["files"][0]["sha256"])
        door.closing_after, door.closed = {}, False
        assert len(list(bucket.unfinished("nano/"))) == 1
        arrived = 3
        door.asked.clear()
        push.activations(layout, bucket)
        assert door.asked["PUT part"] == 6 - arrived
        assert list(bucket.unfinished("")) == []
        inventory.verify(layout, bucket, read=True)


def test_an_upload_of_other_content_is_not_gone_on_with_and_none_is_left(
    layout: Layout, bucket: Bucket, door: Gate
) -> None:
    entry = large(layout)
    key = bucket._prefix + manifest.paths(entry)[0][0]
    begun = bucket._wire.client.create_multipart_upload(Bucket=bucket._name, Key=key, ChecksumAlgorithm="SHA256")
    bucket._wire.client.upload_part(
        Bucket=bucket._name, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=bytes(PART_BYTES)
    )
    push.activations(layout, bucket)
    assert list(bucket.unfinished("")) == []
    inventory.verify(layout, bucket, read=True)


def test_an_upload_that_lacks_its_first_part_is_gone_on_with(layout: Layout, bucket: Bucket, door: Gate) -> None:
    path = layout.root / manifest.paths(large(layout))[0][0]
    place: dict[str, Any] = {"Bucket": bucket._name, "Key": bucket._prefix + str(path.relative_to(layout.root))}
    begun = bucket._wire.client.create_multipart_upload(
        **place, ChecksumAlgorithm="SHA256", Metadata={"sha256": describe(path)["sha256"]}
    )
    for number in (2, 4):
        part = path.read_bytes()[(number - 1) * PART_BYTES : number * PART_BYTES]
        bucket._wire.client.upload_part(**place, UploadId=begun["UploadId"], PartNumber=number, Body=part)
    door.asked.clear()
    push.activations(layout, bucket)
    assert door.asked["PUT part"] == 6 - 2
    inventory.verify(layout, bucket, read=True)


def test_an_upload_of_a_file_that_began_alike_does_not_give_its_checksum_to_another(
    layout: Layout, bucket: Bucket, door: Gate
) -> None:
    entry = large(layout)
    path, file = manifest.paths(entry)[0]
    place: dict[str, Any] = {"Bucket": bucket._name, "Key": bucket._prefix + path}
    begun = bucket._wire.client.create_multipart_upload(
        **place, ChecksumAlgorithm="SHA256", Metadata={"sha256": hashlib.sha256(b"it was shorter").hexdigest()}
    )
    first = (layout.root / path).read_bytes()[:PART_BYTES]
    bucket._wire.client.upload_part(**place, UploadId=begun["UploadId"], PartNumber=1, Body=first)
    push.activations(layout, bucket)
    stored = bucket.stored(path)
    assert stored is not None
    assert stored.sha256 == file["sha256"]
    assert list(bucket.unfinished("")) == []
    inventory.verify(layout, bucket, read=True)


def test_a_full_disk_holds_nothing_up(layout: Layout, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ranges, s3):
        monkeypatch.setattr(module, "RANGE_BYTES", 50_000)
    bucket._wire.client.put_object(Bucket=bucket._name, Key=f"{bucket._prefix}x", Body=bytes(200_000))
    errors = []
    for _ in range(3):
        with pytest.raises(OSError, match="No space left") as caught:
            bucket.fetch("x", Path("/dev/full"), 200_000)
        errors.append(caught.value)  # with all that its traceback holds on to
    for _ in range(WORKERS):
        assert bucket._wire.slots.acquire(blocking=False)


def test_a_part_that_fails_ends_its_file(layout: Layout, hasty: Bucket, door: Gate) -> None:
    path = layout.root / "x"
    path.parent.mkdir(parents=True)
    parts = 60
    with path.open("wb") as file:
        file.truncate(parts * PART_BYTES)
    door.refused = "partNumber=1"
    with hasty as bucket, pytest.raises(Refused):
        bucket.put(path, "x", hashlib.sha256(b"").hexdigest())
    # Those that were under way, and not all the others.
    assert door.asked["PUT part"] < parts / 2


@pytest.mark.parametrize("way", ["up", "down"])
def test_who_stops_does_not_wait_for_the_rest_of_a_file(layout: Layout, uri: str, door: Gate, way: str) -> None:
    path = layout.root / "x"
    path.parent.mkdir(parents=True)
    path.write_bytes(os.urandom(LARGE))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with Bucket(uri, door.url) as bucket:
        bucket.put(path, "x", sha256)
    # An hour's worth.
    with Bucket(uri, door.url, bandwidth=LARGE / 3600) as bucket:
        moves: dict[str, Callable[[], object]] = {
            "up": lambda: bucket.put(path, "y", sha256),
            "down": lambda: bucket.fetch("x", path, LARGE),
        }
        stopping = threading.Timer(0.5, bucket.traffic.stop)
        stopping.start()
        with pytest.raises(Stopped):
            moves[way]()
        stopping.join()
        assert bucket.traffic.bytes < LARGE / 2


def test_bytes_are_seen_while_one_large_file_is_on_its_way(
    layout: Layout, uri: str, door: Gate, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "TICK_SECONDS", 0.05)
    monkeypatch.setattr("emopfx.progress.LINE_SECONDS", 0.1)
    large(layout)
    with Bucket(uri, door.url, bandwidth=LARGE / 2) as bucket:
        push.activations(layout, bucket)
    lines = re.findall(r"push-activations 0/1 .* ([\d.]+)MB/s", capsys.readouterr().err)
    # Never faster than the limit, but for what is allowed at once.
    assert any(float(line) > 0 for line in lines)
    assert float(lines[-1]) <= 1.5 * LARGE / 2 / 1e6


def test_what_is_under_way_ends_where_the_command_is_stopped(bucket: Bucket) -> None:
    began = threading.Event()

    def work(endless: bool) -> None:
        if not endless:
            assert began.wait(10)
            raise KeyboardInterrupt
        while True:
            bucket.traffic.spend(1)
            began.set()
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        parallel.for_each("x", {"a": True, "b": False}, work, bucket.traffic)
