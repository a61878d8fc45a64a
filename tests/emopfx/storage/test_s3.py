import dataclasses
import errno
import hashlib
import io
import os
import resource
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from emopfx.errors import InputError
from emopfx.storage import s3
from emopfx.storage.parts import PART_BYTES, Parts
from emopfx.storage.ranges import RANGE_BYTES
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import OtherContent, Taken, Unavailable
from emopfx.storage.traffic import CHUNK_BYTES, Paced, Traffic
from tests.emopfx.storage.s3_service import CREDENTIALS, Gate

# What goes in pieces, and what goes in parts.
PIECES, LARGE = 3 * CHUNK_BYTES + 5, 2 * PART_BYTES + 5


def write(path: Path, size: int) -> str:
    path.write_bytes(os.urandom(size))
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Around the sizes from which on a file is not read at once, goes in parts, and is fetched in ranges.
@pytest.mark.usefixtures("soon_in_parts")
@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (0, 0),
        (1, 0),
        (CHUNK_BYTES, 0),
        (CHUNK_BYTES + 1, 0),
        (PART_BYTES, 0),
        (PART_BYTES + 1, 2),
        (RANGE_BYTES, 2),
        (RANGE_BYTES + 1, 3),
    ],
)
def test_a_file_comes_back_as_it_went(tmp_path: Path, bucket: Bucket, door: Gate, size: int, parts: int) -> None:
    sha256 = write(tmp_path / "a", size)
    bucket.put(tmp_path / "a", "x/a", sha256)
    assert door.asked["PUT part"] == parts
    stored = bucket.stored("x/a")
    assert stored is not None
    assert (stored.bytes, stored.sha256) == (size, sha256)
    assert bucket.fetch("x/a", tmp_path / "b", size) == sha256
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert bucket.sha256("x/a", size) == sha256


@pytest.mark.usefixtures("soon_in_parts")
@pytest.mark.parametrize("size", [0, 10, PIECES, LARGE])
def test_a_file_with_other_content_is_not_kept(tmp_path: Path, bucket: Bucket, size: int) -> None:
    write(tmp_path / "a", size)
    with pytest.raises(OtherContent, match="x/a has other content than its checksum says"):
        bucket.put(tmp_path / "a", "x/a", hashlib.sha256(b"another").hexdigest())
    assert list(bucket.list("")) == list(bucket.unfinished("")) == []


def test_a_file_that_changes_while_it_is_sent_is_not_kept(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = write(tmp_path / "a", PIECES)

    def cut(count: int) -> None:
        os.truncate(tmp_path / "a", PIECES - 10)

    monkeypatch.setattr(bucket.traffic, "spend", cut)
    with pytest.raises(OtherContent):
        bucket.put(tmp_path / "a", "x/a", sha256)
    monkeypatch.undo()
    assert list(bucket.list("")) == []
    # The connection that was given up is not used again.
    bucket.put(tmp_path / "a", "x/a", write(tmp_path / "a", PIECES))
    assert bucket.read("x/a") == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("readable", [0, CHUNK_BYTES])
def test_a_file_that_can_not_be_read_is_no_fault_of_s3(
    tmp_path: Path, bucket: Bucket, door: Gate, readable: int
) -> None:
    sha256 = write(tmp_path / "a", PIECES)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= readable:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    body = Paced("x/a", Broken((tmp_path / "a").read_bytes()), PIECES, bucket.traffic, sha256)
    with pytest.raises(OSError, match="Input/output error"):
        bucket._put(body, "x/a", sha256, None)
    assert door.asked["PUT"] <= 1
    assert list(bucket.list("")) == []


def test_a_file_is_sent_again_from_its_start(tmp_path: Path, bucket: Bucket, door: Gate) -> None:
    door.failing = 0.7
    for number in range(5):
        bucket.put(tmp_path / "a", f"x/{number}", write(tmp_path / "a", PIECES))
        door.failing, failing = 0, door.failing
        assert bucket.read(f"x/{number}") == (tmp_path / "a").read_bytes()
        door.failing = failing
    assert door.asked["PUT"] > 5


@pytest.mark.usefixtures("soon_in_parts")
@pytest.mark.parametrize("size", [10, PIECES, LARGE])
def test_an_object_is_replaced_only_by_who_has_seen_it(tmp_path: Path, bucket: Bucket, size: int) -> None:
    sha256 = write(tmp_path / "a", size)
    bucket.put_bytes(b"first", "x/a")
    with pytest.raises(Taken):
        bucket.put(tmp_path / "a", "x/a", sha256)
    seen = bucket.stored("x/a")
    bucket.put_bytes(b"second", "x/a", over=seen)
    with pytest.raises(Taken):
        bucket.put_bytes(b"third", "x/a", over=seen)
    assert bucket.read("x/a") == b"second"
    bucket.put(tmp_path / "a", "x/a", sha256, over=bucket.stored("x/a"))
    assert bucket.sha256("x/a", size) == sha256
    assert list(bucket.unfinished("")) == []


def test_of_two_who_write_at_once_one_wins(tmp_path: Path, bucket: Bucket) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def write_own(number: int) -> None:
        barrier.wait()
        try:
            bucket.put_bytes(b"%d" % number, "x/a")
        except Taken:
            outcomes.append("lost")
        else:
            outcomes.append(f"{number}")

    threads = [threading.Thread(target=write_own, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [outcome for outcome in outcomes if outcome != "lost"]
    assert [bucket.read("x/a").decode()] == won


@pytest.mark.usefixtures("soon_in_parts")
def test_parts_of_files_sent_at_once_go_one_file_after_the_other(tmp_path: Path, bucket: Bucket) -> None:
    wire = dataclasses.replace(
        bucket._wire, slots=threading.BoundedSemaphore(1)
    )  # one part at a time shows their order
    bucket._parts = Parts(wire)
    order: list[str] = []
    bucket._wire.client.meta.events.register(
        "before-send.s3.UploadPart", lambda request, **_: order.append(urlsplit(request.url).path[-1])
    )
    sums = {name: write(tmp_path / name, LARGE) for name in "abc"}
    with ThreadPoolExecutor(len(sums)) as pool:
        list(pool.map(lambda name: bucket.put(tmp_path / name, f"x/{name}", sums[name]), sums))
    assert set(order) == set(sums)
    assert order == sorted(order, key=order.index)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.usefixtures("soon_in_parts")
def test_memory_does_not_grow_with_the_number_of_large_files(tmp_path: Path, uri: str, service: str) -> None:
    def in_use() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    size, files = 6 * PART_BYTES, 6
    sha256 = write(tmp_path / "a", size)
    # Not through the gate, which is in this process too. Each in a thread that goes on: one that ends gives all back.
    with Bucket(uri, service) as bucket, ThreadPoolExecutor(files) as pool:
        bucket.put(tmp_path / "a", "x/first", sha256)
        before = in_use()
        list(pool.map(lambda name: bucket.put(tmp_path / "a", f"x/{name}", sha256), range(files)))
        assert in_use() - before < size


def test_reads_ranges_and_no_more(bucket: Bucket, door: Gate) -> None:
    bucket.put_bytes(bytes(range(100)), "x/a")
    assert bucket.read("x/a", 10, 5) == bytes(range(10, 15))
    assert bucket.read("x/a", 98, 5) == bytes([98, 99])
    assert bucket.read("x/a", 100, 5) == bucket.read("x/a", 7, 0) == b""
    assert door.received < 10 + 500  # and the refusal of a range past the end
    with pytest.raises(FileNotFoundError, match="some/prefix/x/b is missing"):
        bucket.read("x/b", 0, 5)
    assert bucket.stored("x/b") is None


def test_lists_and_deletes(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "DELETED_AT_ONCE", 2)
    for name in ("a", "b", "c"):
        bucket.put_bytes(name.encode(), f"x/{name}")
    bucket.put_bytes(b"", "y/a")
    assert [(listed.key, listed.bytes) for listed in bucket.list("x/")] == [("x/a", 1), ("x/b", 1), ("x/c", 1)]
    assert list(bucket.folders()) == ["x", "y"]
    bucket.delete(bucket.list("x/"))
    assert [listed.key for listed in bucket.list("")] == ["y/a"]


def test_an_answer_that_breaks_off_is_asked_for_again(bucket: Bucket, door: Gate, tmp_path: Path) -> None:
    size = 2 * RANGE_BYTES + 5
    sha256 = write(tmp_path / "a", size)
    bucket.put(tmp_path / "a", "x/a", sha256)
    door.broken = 2
    bucket.fetch("x/a", tmp_path / "b", size)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert door.asked["GET"] == 3 + 2


def test_what_is_wrong_with_the_service_is_one_sentence(
    bucket: Bucket, door: Gate, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bucket("s3://no-such-bucket", door.url) as other, pytest.raises(Unavailable, match="does not exist"):
        list(other.list(""))
    with pytest.raises(InputError, match="an S3 URI is s3://bucket or s3://bucket/prefix, got 'bucket'"):
        Bucket("bucket")
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    with Bucket(uri, door.url) as other, pytest.raises(Unavailable, match="boto3 found no credentials"):
        other.put_bytes(b"", "x")


def test_bytes_over_the_limit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("emopfx.storage.traffic.time.monotonic", lambda: now[0])
    limited = Traffic(100)
    monkeypatch.setattr(limited._stopped, "wait", lambda seconds: now.__setitem__(0, now[0] + seconds))
    for _ in range(11):
        limited.spend(50)
    assert now[0] == pytest.approx(5.0)
    assert limited.bytes == 550


@pytest.mark.parametrize("way", ["in one", "in parts"])
def test_what_is_sent_and_received_goes_in_small_pieces(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(s3, "WHOLE_BYTES", {"in one": LARGE, "in parts": PART_BYTES}[way])
    sha256 = write(tmp_path / "a", LARGE)
    pieces: list[int] = []
    spend = bucket.traffic.spend

    def noted(count: int) -> None:
        pieces.append(count)
        spend(count)

    monkeypatch.setattr(bucket.traffic, "spend", noted)
    bucket.put(tmp_path / "a", "x/a", sha256)
    assert (sum(pieces), max(pieces)) == (LARGE, CHUNK_BYTES)
    pieces.clear()
    assert bucket.fetch("x/a", tmp_path / "b", LARGE) == sha256
    assert (sum(pieces), max(pieces)) == (LARGE, CHUNK_BYTES)
    assert bucket.traffic.bytes == 2 * LARGE
