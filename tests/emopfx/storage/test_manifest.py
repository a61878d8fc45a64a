"""What a manifest may say, here and in a bucket, and who may change it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, write_json
from emopfx.storage import inventory, manifest, pull, push
from emopfx.storage.manifest import NoManifestError
from emopfx.storage.pull import Selection
from emopfx.storage.s3 import Bucket
from emopfx.storage.source import PushedFiles
from tests.emopfx.storage.s3_service import content, make_requests

KEY = "nano/activations_manifest.json"


def raw(layout: Layout) -> Any:
    return json.loads(layout.manifest.read_text())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"save_dir": "../victim"}, "calm/a_0001: '../victim' is no folder of a sample under nano/activations"),
        ({"save_dir": "nano/activations/../../victim"}, "is no folder of a sample under nano/activations"),
        ({"save_dir": "nano/activations//calm"}, "is no folder of a sample under nano/activations"),
        ({"save_dir": "nano/activations"}, "is no folder of a sample under nano/activations"),
        ({"save_dir": "/etc"}, "is no folder of a sample under nano/activations"),
        ({"save_dir": 3}, "calm/a_0001.save_dir: Input should be a valid string"),
        ({"files": [{"name": "../x", "bytes": 1, "sha256": "0" * 64}]}, "a file's name has no folder in it"),
        ({"files": [{"name": "..", "bytes": 1, "sha256": "0" * 64}]}, "a file's name has no folder in it"),
        ({"files": [{"name": "x", "bytes": "1", "sha256": "0" * 64}]}, "calm/a_0001.files.0.bytes: Input should be"),
        ({"files": [{"name": "x", "bytes": 1}]}, "calm/a_0001.files.0.sha256: Field required"),
        ({"files": []}, "calm/a_0001.files: List should have at least 1 item"),
        ({"request_id": None}, "calm/a_0001.request_id: Input should be a valid string"),
        ({"uri": "s3://bucket/elsewhere"}, "calm/a_0001: its uri is none of S3 that ends with its save_dir"),
        ({"endpoint_url": "http://me:secret@host"}, "calm/a_0001.endpoint_url: .* without credentials"),
    ],
)
def test_an_entry_that_is_none_is_named_and_nothing_is_done(
    layout: Layout, bucket: Bucket, change: dict[str, Any], said: str
) -> None:
    make_requests(layout, 2)
    victim = layout.root.parent / "victim" / "metadata.json"
    victim.parent.mkdir()
    victim.write_text("precious")
    entries = raw(layout)
    entries["calm/a_0001"] |= change
    write_json(layout.manifest, entries)
    for call in (
        lambda: push.activations(layout, bucket, delete_local=True),
        lambda: inventory.verify(layout, bucket),
        lambda: inventory.whole_elsewhere(layout, None),
        lambda: PushedFiles(layout),
    ):
        with pytest.raises(NoManifestError, match=f"no manifest of nano's activations: .*{said}") as raised:
            call()
        assert "secret" not in str(raised.value)
    assert list(bucket.list("")) == []
    assert victim.read_text() == "precious"
    bucket.put_bytes(json.dumps(entries).encode(), KEY)
    layout.manifest.unlink()
    with pytest.raises(NoManifestError, match=f"no manifest of nano's activations: .*{said}"):
        pull.activations(layout, bucket, Selection())


@pytest.mark.parametrize("text", ["[]", "no JSON", '{"calm": 1}', '{"calm/a": {}}'])
def test_push_replaces_a_manifest_that_is_none_when_told_to(layout: Layout, bucket: Bucket, text: str) -> None:
    make_requests(layout, 2)
    bucket.put_bytes(text.encode(), KEY)
    with pytest.raises(RunError, match="is no"):
        push.activations(layout, bucket)
    push.activations(layout, bucket, replace=True)
    assert manifest.read_remote(bucket, "nano") == manifest.read(layout)


def test_the_other_config_that_comes_in_between_is_seen(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 2)
    mine = manifest.read(layout)
    other = raw(layout)
    other["calm/a_0001"]["request_id"] = "other"
    put_bytes = bucket.put_bytes

    def first_the_other(*arguments: Any, **conditions: Any) -> None:
        patch.undo()
        put_bytes(json.dumps(other).encode(), KEY)
        put_bytes(*arguments, **conditions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket, "put_bytes", first_the_other)
        with pytest.raises(InputError, match=r"calm/a_0001 under another config \(request other, here r00001\)"):
            manifest.publish(bucket, "nano", mine)
    assert json.loads(bucket.read(KEY)) == other


def test_a_manifest_without_entries_is_pushed_and_pulled(layout: Layout, bucket: Bucket, tmp_path: Path) -> None:
    write_json(layout.manifest, {})
    push.activations(layout, bucket)
    other = Layout(tmp_path / "other", "nano")
    pull.activations(other, bucket, Selection())
    assert manifest.read(other) == {}
    inventory.verify(other, bucket)


def test_verify_names_what_the_buckets_own_manifest_lacks(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 4)
    push.activations(layout, bucket)
    entries = manifest.read(layout)
    del entries["calm/a_0001"]
    entries["calm/a_0002"]["files"] = entries["calm/a_0002"]["files"][:1]
    bucket.put_bytes(json.dumps(entries).encode(), KEY, over=bucket.stored(KEY))
    with pytest.raises(RunError) as raised:
        inventory.verify(layout, bucket)
    first, *lines = str(raised.value).splitlines()
    assert first == "verify: 2 of 4 requests are not whole:"
    assert sorted(lines) == [
        f"  calm/a_0001: the manifest in {bucket.root} does not name it",
        f"  calm/a_0002: the manifest in {bucket.root} names other files",
    ]


def test_metadata_comes_last_wherever_the_manifest_names_it(layout: Layout) -> None:
    make_requests(layout, 1)
    entry = manifest.read(layout)["control/a_0001"]
    entry["files"].reverse()
    assert [file["name"] for _, file in manifest.paths(entry)] == ["activations.safetensors", "metadata.json"]


def test_an_entry_says_where_it_was_pulled_from(layout: Layout, bucket: Bucket, tmp_path: Path) -> None:
    make_requests(layout, 2)
    push.activations(layout, bucket)
    # Somebody copies the objects elsewhere.
    with Bucket(f"{bucket.root}/copy", bucket.endpoint_url) as copy:
        for listed in list(bucket.list("nano/")):
            copy.put_bytes(bucket.read(listed.key), listed.key)
        other = Layout(tmp_path / "other", "nano")
        pull.activations(other, copy, Selection())
    assert content(other.folder / "activations") == content(layout.folder / "activations")
    for entry in manifest.read(other).values():
        assert re.fullmatch(rf"{bucket.root}/copy/nano/activations/.*", str(entry["uri"]))
        assert entry["endpoint_url"] == bucket.endpoint_url
