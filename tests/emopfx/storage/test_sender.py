"""What is sent, what counts as there, and when files here may go."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from emopfx.errors import RunError
from emopfx.layout import Layout, write_json
from emopfx.storage import inventory, manifest, pull, push
from emopfx.storage.manifest import Entry
from emopfx.storage.parts import PART_BYTES
from emopfx.storage.pull import Selection
from emopfx.storage.s3 import Bucket
from emopfx.storage.sender import Sender, surely_has
from tests.emopfx.storage.s3_service import Gate, content, describe, make_requests

LARGE = 2 * PART_BYTES + 5


@pytest.fixture
def entry(layout: Layout) -> Entry:
    """Write one request."""
    make_requests(layout, 1)
    return manifest.read(layout)["control/a_0001"]


@pytest.fixture
def large(layout: Layout, entry: Entry, soon_in_parts: None) -> Entry:
    """Write one request whose file goes in parts."""
    path = layout.root / entry["save_dir"] / "activations.safetensors"
    path.write_bytes(os.urandom(LARGE))
    entry["files"] = [describe(path), entry["files"][1]]  # type: ignore[list-item]
    write_json(layout.manifest, {"control/a_0001": entry})
    return entry


def place(bucket: Bucket, key: str) -> dict[str, Any]:
    return {"Bucket": bucket._name, "Key": bucket._prefix + key}


def test_what_something_else_has_sent_is_read_and_not_sent_again(layout: Layout, bucket: Bucket, door: Gate) -> None:
    make_requests(layout, 3)
    entries = manifest.read(layout)
    for entry in entries.values():
        for path, _ in manifest.paths(entry):
            bucket._wire.client.put_object(**place(bucket, path), Body=(layout.root / path).read_bytes())
    door.asked.clear()
    push.activations(layout, bucket)
    assert door.asked["PUT"] == 1  # the manifest
    inventory.verify(layout, bucket)
    path = manifest.paths(entries["calm/a_0001"])[0][0]
    bucket._wire.client.put_object(**place(bucket, path), Body=(layout.root / path).read_bytes()[::-1])
    with pytest.raises(RunError, match=r"1 of 3 requests .*\n  calm/a_0001: .* has other content"):
        inventory.verify(layout, bucket)


def test_of_an_object_in_parts_the_checksum_of_the_parts_is_compared(
    layout: Layout, bucket: Bucket, large: Entry, door: Gate
) -> None:
    push.activations(layout, bucket)
    received = door.received
    push.activations(layout, bucket, delete_local=True)
    assert content(layout.folder / "activations") == {}
    assert door.received - received < 8192


@pytest.mark.parametrize("parts", [True, False])
def test_what_s3_has_no_checksum_of_is_read_before_files_here_go(
    layout: Layout, bucket: Bucket, large: Entry, door: Gate, *, parts: bool
) -> None:
    path, file = manifest.paths(large)[0]
    right = (layout.root / path).read_bytes()
    said: dict[str, Any] = {"Metadata": {"sha256": file["sha256"]}}
    wrong = right[:-1] + bytes([right[-1] ^ 1])
    sender = Sender(bucket, layout.root, set(), replace=False)
    for data, whole in ((wrong, False), (right, True)):
        if parts:
            upload = bucket._wire.client.create_multipart_upload(**place(bucket, path), **said)
            sent = {**place(bucket, path), "UploadId": upload["UploadId"]}
            done: list[Any] = [
                {
                    "PartNumber": number,
                    "ETag": bucket._wire.client.upload_part(**sent, PartNumber=number, Body=body)["ETag"],
                }
                for number, body in enumerate((data[:PART_BYTES], data[PART_BYTES:]), 1)
            ]
            bucket._wire.client.complete_multipart_upload(**sent, MultipartUpload={"Parts": done})
        else:
            bucket._wire.client.put_object(**place(bucket, path), Body=data, **said)
        received = door.received
        assert surely_has(bucket, path, layout.root / path, file) == whole
        assert door.received - received >= LARGE
        if not whole:
            with pytest.raises(RunError, match="is not whole; the files here are kept"):
                sender.delete_entry(large)
            assert (layout.root / path).exists()


def test_an_object_in_parts_is_known_by_what_the_manifest_has_of_it(
    layout: Layout, bucket: Bucket, large: Entry, door: Gate, tmp_path: Path
) -> None:
    push.activations(layout, bucket)
    path, file = manifest.paths(large)[0]
    stored = bucket.stored(path)
    assert stored is not None
    assert manifest.read(layout)["control/a_0001"]["checksums"] == {file["name"]: stored.checksum}
    received = door.received
    inventory.verify(layout, bucket)
    other = Layout(tmp_path / "other", "nano")
    pull.addresses(other, bucket)
    inventory.verify(other, bucket)
    assert door.received - received < 20_000  # manifests
    # Other content in parts, whose writer says that it is the right one.
    right = (layout.root / path).read_bytes()
    (tmp_path / "x").write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    bucket.put(tmp_path / "x", path, describe(tmp_path / "x")["sha256"], stored)
    bucket._wire.client.copy_object(
        **place(bucket, path),
        CopySource=place(bucket, path),  # type: ignore[arg-type]
        MetadataDirective="REPLACE",
        Metadata={"sha256": file["sha256"]},
    )
    for one in (layout, other):
        with pytest.raises(RunError, match="has other content than its checksum says"):
            inventory.verify(one, bucket)
    for replace, layers in ((False, frozenset[int]()), (True, frozenset({1}))):
        with pytest.raises(RunError, match="has other content than its checksum says"):
            pull.activations(other, bucket, Selection(layers=layers), replace=replace)
    with pytest.raises(RunError, match="has other content; push --replace writes over it"):
        push.activations(layout, bucket)
    push.activations(layout, bucket, replace=True)
    for one in (layout, other):
        inventory.verify(one, bucket)


def test_what_is_not_ours_stays_where_files_are_deleted(layout: Layout, bucket: Bucket, entry: Entry) -> None:
    folder = layout.root / entry["save_dir"]
    (folder / ".activations.safetensors.part").write_bytes(b"half")
    push.activations(layout, bucket, delete_local=True)
    # No empty folders are left.
    assert list((layout.folder / "activations").iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    push.activations(layout, bucket, delete_local=True)
    assert content(layout.folder / "activations") == {f"control/a_0001/{folder.name}/notes.txt": b"mine"}


def test_a_delete_that_was_broken_off_leaves_no_folder_that_counts(
    layout: Layout, bucket: Bucket, entry: Entry
) -> None:
    push.activations(layout, bucket)
    unlink = type(layout.root).unlink

    def fail(path: object, *arguments: bool, **flags: bool) -> None:
        if str(path).endswith("/activations.safetensors"):
            raise OSError("no")
        unlink(path, *arguments, **flags)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(layout.root), "unlink", fail)
        with pytest.raises(RunError, match="delete-local: 1 of 1 are kept here"):
            push.activations(layout, bucket, delete_local=True)
    assert inventory.whole_elsewhere(layout, None) == {entry["save_dir"]}
    inventory.verify(layout, bucket)
    push.activations(layout, bucket, delete_local=True)
    assert content(layout.folder / "activations") == {}


def test_who_reads_a_large_object_does_not_take_it_for_a_longer_one(
    layout: Layout, bucket: Bucket, large: Entry, door: Gate
) -> None:
    push.activations(layout, bucket)
    path, file = manifest.paths(large)[0]
    target = layout.root / "x"
    # The large one comes last: what was asked for ahead of it may still arrive when it is found out.
    for size in (10, 0, file["bytes"] - 1):
        received = door.received
        with pytest.raises(RunError, match=f"has {LARGE} bytes, not {size}"):
            bucket.fetch(path, target, size)
        with pytest.raises(RunError, match=f"has {LARGE} bytes, not {size}"):
            bucket.sha256(path, size)
        shutil.rmtree(target, ignore_errors=True)
        # Of a small one, what is in the sockets' buffers when it is found out.
        assert size > 10 or door.received - received <= 2 * LARGE
    assert bucket.sha256(path, LARGE) == hashlib.sha256((layout.root / path).read_bytes()).hexdigest()
