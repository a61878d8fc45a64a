"""Results in a bucket, and whose they are."""

import json
from pathlib import Path

import pytest

from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, write_json, write_text
from emopfx.storage import manifest, pull, push
from emopfx.storage.s3 import Bucket
from emopfx.storage.source import PushedFiles
from tests.emopfx.storage.s3_service import content, make_requests


@pytest.fixture
def other(tmp_path: Path) -> Layout:
    """Return the same experiment in another place."""
    return Layout(tmp_path / "other", "nano")


def write(layout: Layout, config_hash: str, **files: str) -> None:
    write_json(layout.record, {"hash": config_hash})
    for name, text in files.items():
        write_text(layout.folder / f"{name}.json", text)


def test_results_of_another_config_are_not_written_over(layout: Layout, other: Layout, bucket: Bucket) -> None:
    write(layout, "one", report="1")
    push.results(layout, bucket)
    write(other, "two", report="2")
    with pytest.raises(InputError, match=r"has results of another config \(hash one, here two\).*--replace"):
        push.results(other, bucket)
    assert bucket.read("nano/report.json") == b"1"
    push.results(other, bucket, replace=True)
    assert bucket.read("nano/report.json") == b"2"


def test_of_two_who_push_results_at_once_the_later_one_sees_the_other(
    layout: Layout, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(layout, "one", report="1")
    put_bytes = bucket.put_bytes

    def first_the_other(text: bytes, key: str) -> None:
        put_bytes(json.dumps({"hash": "two"}).encode(), key)
        put_bytes(text, key)

    monkeypatch.setattr(bucket, "put_bytes", first_the_other)
    with pytest.raises(InputError, match=r"hash two, here one"):
        push.results(layout, bucket)
    assert [listed.key for listed in bucket.list("nano/")] == ["nano/experiment_config.json"]


def test_uploads_of_results_that_were_broken_off_are_given_up(layout: Layout, bucket: Bucket) -> None:
    write(layout, "one", report="1")
    for name in ("report.json", "somebody-elses.json"):
        bucket._wire.client.create_multipart_upload(Bucket=bucket._name, Key=f"{bucket._prefix}nano/{name}")
    push.results(layout, bucket)
    assert [one.key for one in bucket.unfinished("")] == ["nano/somebody-elses.json"]


def test_results_here_are_not_written_over(layout: Layout, other: Layout, bucket: Bucket) -> None:
    write(layout, "one", report="1", more="1")
    push.results(layout, bucket)
    write(other, "one", report="mine")
    with pytest.raises(RunError, match=r"1 of 3 are not in .*\n  nano/report.json: .* has other content; pull --repl"):
        pull.results(other, bucket)
    assert (other.folder / "more.json").read_text() == "1"
    assert (other.folder / "report.json").read_text() == "mine"
    pull.results(other, bucket, replace=True)
    assert (other.folder / "report.json").read_text() == "1"
    write(other, "two")
    with pytest.raises(InputError, match=r"hash one, here two"):
        pull.results(other, bucket)


def test_only_results_are_pulled_whatever_else_is_in_the_folder(layout: Layout, other: Layout, bucket: Bucket) -> None:
    write(layout, "one", report="1")
    push.results(layout, bucket)
    for key in ("nano/", "nano/calm/", "nano/.lock", "nano/server.json", "nano//x", "nano/../x", "nano/a/../../x"):
        bucket.put_bytes(b"", key)
    pull.results(other, bucket)
    assert content(other.folder).keys() == {".lock", "experiment_config.json", "report.json"}
    assert {path.name for path in other.root.iterdir()} == {"nano"}


def test_results_that_something_else_has_sent_are_read_to_be_compared(
    layout: Layout, other: Layout, bucket: Bucket
) -> None:
    write(layout, "one", report="1")
    for path in (layout.record, layout.report("json")):
        key = f"{bucket._prefix}nano/{path.name}"
        bucket._wire.client.put_object(Bucket=bucket._name, Key=key, Body=path.read_bytes())
    push.results(layout, bucket)
    stored = bucket.stored("nano/report.json")
    assert stored is not None
    assert stored.sha256 is None, "it was sent again"
    pull.results(other, bucket)
    assert (other.folder / "report.json").read_text() == "1"


def test_addresses_are_enough_to_read_what_is_only_in_the_bucket(layout: Layout, other: Layout, bucket: Bucket) -> None:
    make_requests(layout, 4)
    push.activations(layout, bucket)
    pull.addresses(other, bucket)
    assert manifest.read(other) == manifest.read(layout)
    assert not (other.folder / "activations").exists()
    # Nothing but the manifest tells the address of the service.
    with PushedFiles(other) as files:
        for name, data in content(layout.folder / "activations").items():
            assert files.read(f"nano/activations/{name}", 0, 1 << 20) == data
    # What is here in part stays known.
    pull.activations(other, bucket, pull.Selection(layers=frozenset({2})))
    before = manifest.read(other)
    pull.addresses(other, bucket)
    assert manifest.read(other) == before
