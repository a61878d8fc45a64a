from pathlib import Path

import pytest

from emopfx.errors import RunError
from emopfx.layout import Layout
from emopfx.storage import manifest, parallel, push
from emopfx.storage.s3 import Bucket
from emopfx.storage.source import PushedFiles
from tests.emopfx.storage.s3_service import Gate, give_up_after, make_requests

RANGES = [(0, 8), (100, 50), (0, 1 << 20), (1 << 20, 5)]


def test_reads_the_same_from_the_bucket_as_from_the_disk(layout: Layout, bucket: Bucket, door: Gate) -> None:
    make_requests(layout, 4)
    push.activations(layout, bucket)
    size = sum(file["bytes"] for entry in manifest.read(layout).values() for _, file in manifest.paths(entry))
    names = [path for entry in manifest.read(layout).values() for path, _ in manifest.paths(entry)]
    with PushedFiles(layout, door.url) as files:
        door.asked.clear()
        before = {(name, *span): files.read(name, *span) for name in names for span in RANGES}
        assert door.asked.total() == 0
    push.activations(layout, bucket, delete_local=True)
    with PushedFiles(layout, door.url) as files:
        door.asked.clear()
        received = door.received
        assert {key: files.read(*key) for key in before} == before
        # The first bytes, then later ones (which metadata.json has not), then the rest; nothing past the end.
        assert door.asked == {"GET": 5 * len(names) // 2}
        assert door.received - received == size + 50 * len(names) // 2
        assert {key: files.read(*key) for key in before} == before
        assert door.asked == {"GET": 5 * len(names) // 2}
    with PushedFiles(layout, door.url) as files:
        received = door.received
        files.read(names[0], 100, 50)
        assert door.received - received == 50


def test_what_is_left_of_a_folder_that_was_pushed_is_not_read(layout: Layout, bucket: Bucket, door: Gate) -> None:
    make_requests(layout, 1)
    push.activations(layout, bucket)
    folder = layout.root / next(iter(manifest.read(layout).values()))["save_dir"]
    name = f"{folder.relative_to(layout.root)}/activations.safetensors"
    before = (layout.root / name).read_bytes()[:1000]
    (folder / "metadata.json").unlink()
    (folder / "activations.safetensors").write_bytes(b"damaged")
    with PushedFiles(layout, door.url) as files:
        assert files.read(name, 0, 1000) == before
        assert files.size(name) > 1000


def test_a_file_that_is_nowhere_is_an_error_of_that_file_and_an_outage_is_not(
    layout: Layout, bucket: Bucket, door: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_requests(layout, 2)
    name = next(iter(manifest.read(layout).values()))["save_dir"] + "/activations.safetensors"
    with PushedFiles(layout) as files, pytest.raises(FileNotFoundError):
        files.read("nano/activations/calm/a_0009/x/activations.safetensors", 0, 8)
    push.activations(layout, bucket, delete_local=True)
    bucket.delete(bucket.list(name))
    with PushedFiles(layout, door.url) as files, pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        files.read(name, 0, 8)
    give_up_after(1, monkeypatch)
    monkeypatch.setattr(parallel, "PAUSES", ())
    door.closed = True
    with PushedFiles(layout, door.url) as files, pytest.raises(RunError):
        files.read(name, 0, 8)
