"""Some layers here, the rest in the bucket."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from emopfx.errors import RunError
from emopfx.layout import Layout, write_json
from emopfx.storage import inventory, layers, manifest, pull, push
from emopfx.storage.objects import Stored
from emopfx.storage.pull import Selection
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import OtherContent
from emopfx.storage.source import PushedFiles
from tests.emopfx.storage.s3_service import Gate, content, make_requests

LAYER_BYTES = 2 * 64 * 128 * 4


def some(*numbers: int) -> Selection:
    return Selection(layers=frozenset(numbers))


@pytest.fixture
def whole(layout: Layout, bucket: Bucket) -> dict[str, bytes]:
    """Push requests, keep none of them here, and return what they were."""
    make_requests(layout, 4, tokens=64, width=128, layers=8)
    before = content(layout.folder / "activations")
    push.activations(layout, bucket, delete_local=True)
    return before


def test_what_is_here_in_part_is_whole_elsewhere(layout: Layout, bucket: Bucket, whole: dict[str, bytes]) -> None:
    entries = manifest.read(layout)
    pull.activations(layout, bucket, some(2))
    folders = {entry["save_dir"] for entry in entries.values()}
    assert inventory.whole_elsewhere(layout, None) == folders
    # The manifest goes on to name the whole files, and says which layers are here.
    for key, entry in manifest.read(layout).items():
        assert (entry["files"], entry["uri"]) == (entries[key]["files"], entries[key]["uri"])
        assert entry["layers"] == [2]
    inventory.verify(layout, bucket)
    damaged = next(iter(entries.values()))["save_dir"]
    bucket.delete(bucket.list(f"{damaged}/activations.safetensors"))
    assert inventory.whole_elsewhere(layout, None) == folders - {damaged}


@pytest.mark.parametrize("left", ["activations.safetensors", ".activations.safetensors.part"])
def test_a_half_finished_pull_is_not_here(layout: Layout, bucket: Bucket, whole: dict[str, bytes], left: str) -> None:
    folders = {entry["save_dir"] for entry in manifest.read(layout).values()}
    for folder in folders:
        (layout.root / folder).mkdir(parents=True)
        (layout.root / folder / left).write_bytes(b"half")
    assert inventory.whole_elsewhere(layout, None) == folders
    inventory.verify(layout, bucket)
    pull.activations(layout, bucket, Selection())
    assert content(layout.folder / "activations") == whole


def test_a_damaged_layer_here_is_named(layout: Layout, bucket: Bucket, whole: dict[str, bytes]) -> None:
    pull.activations(layout, bucket, some(2))
    path = layout.folder / "activations/calm/a_0001/r00001/activations.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match=r"1 of 4 requests are not whole:\n  calm/a_0001: .* has other content"):
        inventory.verify(layout, bucket)


def test_layers_come_to_those_that_are_here(
    layout: Layout, bucket: Bucket, door: Gate, whole: dict[str, bytes]
) -> None:
    pull.activations(layout, bucket, some(2))
    received = door.received
    pull.activations(layout, bucket, some(5))
    assert door.received - received < 4 * (LAYER_BYTES + (1 << 14)) + 8192
    for key, entry in manifest.read(layout).items():
        assert entry["layers"] == [2, 5], key
        found = load_file(layout.root / entry["save_dir"] / "activations.safetensors")
        assert {name.split(".")[1] for name in found if name.startswith("layers")} == {"2", "5"}
    received = door.received
    pull.activations(layout, bucket, some(5))
    assert door.received - received < 8192
    pull.activations(layout, bucket, Selection())
    assert content(layout.folder / "activations") == whole
    assert not any("layers" in entry for entry in manifest.read(layout).values())


@pytest.mark.parametrize("chosen", [{2}, {2, 5}])
def test_layers_of_what_was_made_anew_are_not_mixed_with_old_ones(
    layout: Layout, bucket: Bucket, whole: dict[str, bytes], tmp_path: Path, chosen: set[int]
) -> None:
    pull.activations(layout, bucket, some(2))
    anew = Layout(tmp_path / "anew", layout.name)
    make_requests(anew, 4, tokens=32, width=128, layers=8)
    push.activations(anew, bucket, replace=True)
    pull.activations(layout, bucket, some(*chosen), replace=True)
    for entry in manifest.read(layout).values():
        found, expected = (
            load_file(root / entry["save_dir"] / "activations.safetensors") for root in (layout.root, anew.root)
        )
        assert {name.split(".")[1] for name in found if name.startswith("layers")} == set(map(str, chosen))
        assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_reads_the_layers_that_are_here_from_the_disk_and_the_others_from_the_bucket(
    layout: Layout, bucket: Bucket, door: Gate, whole: dict[str, bytes]
) -> None:
    pull.activations(layout, bucket, some(2, 3))
    for path, data in whole.items():
        if path.endswith("metadata.json"):
            continue
        name = f"nano/activations/{path}"
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        spans = {key: entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"}
        with PushedFiles(layout) as files:
            door.asked.clear()
            # The header and what follows it here.
            assert data.startswith(files.read(name, 0, 1 << 14)[: 8 + length])
            for key, (begin, end) in spans.items():
                found = files.read(name, 8 + length + begin, end - begin)
                assert found == data[8 + length + begin : 8 + length + end]
                assert door.asked.total() == 0 or key.split(".")[1] not in "23", key
                door.asked.clear()
            assert files.read(name, 0, len(data))[: 8 + length] == data[: 8 + length]
            assert files.read(name, 10, len(data)) == data[10:]


def test_layers_of_what_was_never_pushed_are_read_and_the_others_are_an_error(
    layout: Layout, bucket: Bucket, whole: dict[str, bytes]
) -> None:
    pull.activations(layout, bucket, some(2))
    entries = manifest.read(layout)
    write_json(layout.manifest, {key: {**entry, "uri": None} for key, entry in entries.items()})
    name = manifest.paths(entries["calm/a_0001"])[0][0]
    with PushedFiles(layout) as files:
        assert files.read(name, 0, 100)
        with pytest.raises(FileNotFoundError, match="only some layers are here"):
            files.read(name, len(whole[name.removeprefix("nano/activations/")]) - 1, 1)


def test_an_object_that_is_not_the_manifests_is_refused_before_its_layers_are_read(
    layout: Layout, bucket: Bucket, door: Gate, whole: dict[str, bytes]
) -> None:
    key = "nano/activations/calm/a_0001/r00001/activations.safetensors"
    bucket.put_bytes(bucket.read(key)[::-1], key, over=bucket.stored(key))
    received = door.received
    with pytest.raises(RunError, match=rf"1 of 4 .*\n  calm/a_0001: {bucket.uri(key)} has other content"):
        pull.activations(layout, bucket, some(2))
    assert door.received - received < 3 * (LAYER_BYTES + (1 << 14)) + 8192
    assert not (layout.root / key).exists()


def test_an_object_that_changes_while_it_is_read_is_refused(
    layout: Layout, bucket: Bucket, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = manifest.read(layout)["calm/a_0001"]
    key, file = manifest.paths(entry)[0]
    find = bucket.stored

    def stored(name: str) -> Stored | None:
        found = find(name)
        bucket.put_bytes(bucket.read(name)[::-1], name, over=found)
        return found

    monkeypatch.setattr(bucket, "stored", stored)
    with pytest.raises(OtherContent, match="was changed while it was read"):
        layers.fetch(bucket, key, tmp_path / "part", {2}, file)


@pytest.mark.parametrize(
    "header",
    [
        b"{}}",
        b"[]",
        b'{"layers.2.x": {}}',
        b'{"layers.2.x": {"dtype": "F32", "shape": [1]}}',
        b'{"layers.2.x": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}',
        b'{"layers.2.x": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}',
        b'{"layers.2.x": {"dtype": "F32", "shape": [1], "data_offsets": [9, 13]}}',
        b'{"layers.2.x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}',
    ],
)
def test_a_broken_header_is_an_error_of_that_file(
    layout: Layout, bucket: Bucket, header: bytes, tmp_path: Path
) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    bucket.put_bytes(data, "x")
    stored = bucket.stored("x")
    assert stored is not None
    assert stored.sha256 is not None
    with pytest.raises(RunError, match=r"/x has (a broken header|400 bytes of layers.2.x, which)"):
        layers.fetch(bucket, "x", tmp_path / "part", {2}, {"name": "x", "bytes": len(data), "sha256": stored.sha256})


def test_what_a_pull_leaves_half_done_goes(layout: Layout, bucket: Bucket, whole: dict[str, bytes]) -> None:
    key = "nano/activations/calm/a_0001/r00001/activations.safetensors"
    bucket.put_bytes(bucket.read(key)[::-1], key, over=bucket.stored(key))
    for selection in (some(2), some(99), Selection()):
        with pytest.raises(RunError):
            pull.activations(layout, bucket, selection)
        assert [path for path in content(layout.folder) if path.endswith(".part")] == []
        shutil.rmtree(layout.folder / "activations", ignore_errors=True)
