"""What users do by mistake, and what others do to a bucket: nothing is lost, and one sentence says what is wrong."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emopfx import cli
from emopfx.errors import RunError
from emopfx.layout import Layout, write_json, write_text
from emopfx.storage import inventory, manifest, parallel, pull, push
from emopfx.storage.client import ATTEMPTS
from emopfx.storage.pull import Selection
from emopfx.storage.s3 import Bucket
from tests.emopfx.storage.s3_service import Gate, content, describe, make_requests
from tests.emopfx.storage.test_push_pull import command


def emopfx(*arguments: Any, **environment: str) -> tuple[int, str]:
    """Run a command in a process of its own; return its exit code and what it printed."""
    line = [sys.executable, "-m", "emopfx.cli", *command(*arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    return done.returncode, done.stdout + done.stderr


def rot(bucket: Bucket, key: str) -> bytes:
    """Put other bytes in an object's place, under the checksum that it had; return what it had."""
    stored, before = bucket.stored(key), bucket.read(key)
    assert stored is not None
    wrong = before[:-1] + bytes([before[-1] ^ 1])
    place: dict[str, Any] = {"Bucket": bucket._name, "Key": bucket._prefix + key}
    bucket._wire.client.put_object(**place, Body=wrong, Metadata={"sha256": str(stored.sha256)})
    return before


@pytest.mark.parametrize("text", [b"{", b"[]", b'"\xff"'])
def test_a_manifest_that_is_none_is_not_taken_for_an_empty_one(
    layout: Layout, uri: str, door: Gate, bucket: Bucket, text: bytes
) -> None:
    make_requests(layout, 2)
    layout.manifest.write_bytes(text)
    for verb in ("push", "pull", "verify"):
        code, said = emopfx(layout, uri, door, verb)
        assert code in (1, 2)
        assert verb == "pull" or f"{layout.manifest} is no" in said
    assert layout.manifest.read_bytes() == text
    assert list(bucket.list("")) == []


def test_pull_writes_over_nothing_that_is_whole_here(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 2)
    push.activations(layout, bucket)
    entries = manifest.read(layout)
    entry = entries["calm/a_0001"]
    path = layout.root / entry["save_dir"] / "activations.safetensors"
    mine = {name: value + 1 for name, value in load_file(path).items()}
    save_file(mine, path)
    entry["files"] = [describe(path), entry["files"][1]]  # type: ignore[list-item]
    write_json(layout.manifest, entries)
    with pytest.raises(RunError, match=r"1 of 2 .*\n  calm/a_0001: .* has other content; pull --replace writes over"):
        pull.activations(layout, bucket, Selection())
    assert all(np.array_equal(value, mine[name]) for name, value in load_file(path).items())
    pull.activations(layout, bucket, Selection(), replace=True)
    inventory.verify(layout, bucket)


def test_a_name_that_no_object_can_have_is_that_file_s_own_failure(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 1)
    for name in (b"a.json", b"caf\xe9.json", b"line\n.json"):
        Path(os.fsdecode(os.fsencode(layout.folder) + b"/" + name)).write_bytes(b"{}")
    with pytest.raises(RunError, match=r"2 of 3 are not .*\n.*caf.* can't be the name of an object\n.*line"):
        push.results(layout, bucket)
    assert bucket.read("nano/a.json") == b"{}"


def test_folders_may_have_names_that_addresses_can_not_have(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 2)
    entries = manifest.read(layout)
    entry = entries["calm/a_0001"]
    odd = f"{entry['save_dir']} ?#"
    (layout.root / entry["save_dir"]).rename(layout.root / odd)
    entry["save_dir"] = odd
    write_json(layout.manifest, entries)
    before = content(layout.folder / "activations")
    push.activations(layout, bucket, delete_local=True)
    push.activations(layout, bucket)
    inventory.verify(layout, bucket, read=True)
    pull.activations(layout, bucket, Selection())
    assert content(layout.folder / "activations") == before


@pytest.mark.parametrize(
    ("verb", "flags"),
    [("push", ("--results",)), ("pull", ("--results",)), ("pull", ("--results-only",)), ("prune", ())],
)
def test_an_outage_at_the_beginning_is_outlasted(
    layout: Layout,
    uri: str,
    door: Gate,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    flags: tuple[str, ...],
) -> None:
    monkeypatch.setattr(parallel, "PAUSES", (1.0, 1.0))
    make_requests(layout, 2)
    write_json(layout.record, {"hash": "one"})
    push.activations(layout, bucket)
    push.results(layout, bucket)
    door.closed, asked = True, door.asked.total()

    def open_again() -> None:
        while door.asked.total() < asked + ATTEMPTS:
            time.sleep(0.01)
        time.sleep(0.5)
        door.open()

    threading.Thread(target=open_again, daemon=True).start()
    with pytest.raises(SystemExit) as end:
        cli.main(command(layout, uri, door, verb, *flags))
    said = capsys.readouterr().err
    assert (end.value.code, f"{verb}: s3://" in said, "tried again in 1 s" in said) == (0, True, True)


@pytest.mark.parametrize("name", ["AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"])
def test_credentials_that_end_a_line_are_not_shown(layout: Layout, uri: str, door: Gate, name: str) -> None:
    make_requests(layout, 1)
    code, said = emopfx(layout, uri, door, "push", **{name: "do-not-show-this\n"})
    assert (code, "the credentials hold what no header may" in said) == (1, True)
    assert "do-not-show-this" not in said


def test_who_stops_does_not_wait_for_a_service_that_hangs(layout: Layout, uri: str, door: Gate) -> None:
    make_requests(layout, 60)
    line = [sys.executable, "-m", "emopfx.cli", *command(layout, uri, door, "push")]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while door.asked["PUT"] < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        door.delay = 60
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
        assert process.stderr
        assert "stopped; what is finished is kept" in process.stderr.read()


def test_results_of_another_config_keep_activations_from_being_mixed_too(
    layout: Layout, uri: str, door: Gate, bucket: Bucket, tmp_path: Path
) -> None:
    make_requests(layout, 2)
    write_json(layout.record, {"hash": "one"})
    assert emopfx(layout, uri, door, "push", "--with-results")[0] == 0
    before = {one.key for one in bucket.list("")}
    other = Layout(tmp_path / "other", layout.name)
    make_requests(other, 4)
    write_json(other.record, {"hash": "two"})
    code, said = emopfx(other, uri, door, "push", "--with-results")
    assert (code, "has results of another config" in said) == (2, True)
    assert {one.key for one in bucket.list("")} == before
    third = Layout(tmp_path / "third", layout.name)
    write_json(third.record, {"hash": "three"})
    for flag in ("--with-results", "--results-only"):
        assert emopfx(third, uri, door, "pull", flag)[0] == 2
        assert content(third.folder).keys() <= {"experiment_config.json", ".lock"}


def test_what_rotted_in_the_bucket_is_found_and_can_be_replaced(layout: Layout, bucket: Bucket, tmp_path: Path) -> None:
    make_requests(layout, 2)
    push.activations(layout, bucket)
    key = "nano/activations/calm/a_0001/r00001/activations.safetensors"
    before = rot(bucket, key)
    other = Layout(tmp_path / "other", layout.name)
    with pytest.raises(RunError, match=r"calm/a_0001: .* has other content than its checksum says"):
        pull.activations(other, bucket, Selection(layers=frozenset({0})))
    push.activations(layout, bucket, replace=True)
    assert bucket.read(key) == before
    inventory.verify(layout, bucket)


def test_layers_alone_are_not_sent_and_it_says_so(
    layout: Layout, bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_requests(layout, 2)
    push.activations(layout, bucket)
    other = Layout(tmp_path / "other", layout.name)
    pull.activations(other, bucket, Selection(layers=frozenset({0})))
    push.activations(other, bucket)
    assert "2 of 2 requests are here by some of their layers only" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("pull", "--variants", ""), "--variants names nothing"),
        (("pull", "--samples", ","), "--samples names nothing"),
        (("pull", "--layers", ","), "--layers names nothing"),
        (("prune", "--older-than", "inf"), "--older-than"),
        (("prune", "--older-than", "1e9"), "--older-than"),
    ],
)
def test_bad_flags_are_one_sentence(layout: Layout, uri: str, door: Gate, flags: tuple[str, ...], words: str) -> None:
    make_requests(layout, 1)
    code, said = emopfx(layout, uri, door, *flags)
    assert (code, words in said, "Traceback" in said) == (2, True, False)


@pytest.mark.parametrize("text", ["{}", '{"config": []}', '{"config": {"storage": {"s3": 1}}}', "[]"])
def test_a_record_that_is_none_is_named(layout: Layout, text: str) -> None:
    make_requests(layout, 1)
    write_text(layout.record, text)
    line = [sys.executable, "-m", "emopfx.cli", "activations", "push", "--name", "nano", "--results", str(layout.root)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert re.search(r"is no record|say which bucket", done.stderr)


def test_lists_keep_long_addresses_whole_and_odd_ones_as_they_are(
    service: str, door: Gate, layout: Layout, bucket: Bucket
) -> None:
    make_requests(layout, 1)
    place = f"s3://{bucket._name}/[/x]/{'long' * 30}"
    with Bucket(place, door.url) as odd:
        push.activations(layout, odd)
    line = [sys.executable, "-m", "emopfx.cli", "activations", "ls", "--uri", place, "--endpoint-url", door.url]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == f"{place}/nano\n"
    assert emopfx(layout, place, door, "ls")[0] == 0


def test_an_unfinished_upload_of_a_result_is_pruned(layout: Layout, uri: str, door: Gate, bucket: Bucket) -> None:
    make_requests(layout, 1)
    push.activations(layout, bucket)
    bucket._wire.client.create_multipart_upload(Bucket=bucket._name, Key=f"{bucket._prefix}nano/report.html")
    assert "nano/report.html (unfinished upload)" in emopfx(layout, uri, door, "prune", "--older-than", "0")[1]
