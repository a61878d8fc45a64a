import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from emopfx import cli
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, write_json, write_text
from emopfx.storage import inventory, manifest, pull, push
from emopfx.storage.client import WORKERS
from emopfx.storage.objects import Listed
from emopfx.storage.pull import Selection
from emopfx.storage.s3 import Bucket
from emopfx.storage.sender import Sender
from tests.emopfx.storage.s3_service import CREDENTIALS, Gate, content, give_up_after, make_requests

EVERYTHING = Selection()
Command = Callable[..., tuple[int, str]]


def command(layout: Layout, uri: str, door: Gate, name: str, *flags: str) -> list[str]:
    place = ("--name", layout.name, "--results", str(layout.root), "--uri", uri, "--endpoint-url", door.url)
    return ["activations", name, *place, *flags]


@pytest.fixture
def emopfx(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command here; return its exit code and what it printed."""

    def run(*arguments: Any) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(command(*arguments))
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return run


def activations(layout: Layout) -> dict[str, bytes]:
    return content(layout.folder / "activations")


def test_goes_on_after_a_kill_and_comes_back_byte_for_byte(
    layout: Layout, uri: str, door: Gate, emopfx: Command
) -> None:
    count = 300
    make_requests(layout, count, tokens=16, width=200)  # 31 MB
    before = activations(layout)
    line = [sys.executable, "-m", "emopfx.cli", *command(layout, uri, door, "push")]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
        ends = time.monotonic() + 120
        while door.asked["PUT"] < count and process.poll() is None and time.monotonic() < ends:  # half of the files
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    first = door.asked["PUT"]
    assert count <= first < 2 * count
    door.asked.clear()

    code, said = emopfx(layout, uri, door, "push")
    assert code == 0, said
    found = re.search(r"push: (\d+) files sent, (\d+) were there", said)
    assert found is not None
    sent, kept = int(found[1]), int(found[2])
    # What was under way at the kill may have arrived, even late; nothing else is sent twice.
    assert 2 * count - first <= sent <= 2 * count - first + WORKERS
    assert sent <= door.asked["PUT"] - 1 <= 2 * count - first + WORKERS  # besides the manifest
    # Each file that is there is asked about once, and so is the manifest.
    assert (sent + kept, door.asked["HEAD"]) == (2 * count, kept + 1)

    code, said = emopfx(layout, uri, door, "verify")
    assert (code, f"verify: {count} requests are whole in {uri}, {count} of them are here too" in said) == (0, True)

    door.asked.clear()
    assert emopfx(layout, uri, door, "push")[0] == 0
    assert door.asked["PUT"] == 0

    shutil.rmtree(layout.root)
    door.asked.clear()
    code, said = emopfx(layout, uri, door, "pull")
    assert (code, activations(layout) == before) == (0, True)
    assert door.asked == {"GET": 2 * count + 1}
    assert f"pull: {2 * count} files fetched, 0 were here" in said
    assert emopfx(layout, uri, door, "pull")[0] == 0
    assert door.asked["GET"] == 2 * count + 2


def test_every_entry_says_where_it_is_and_the_bucket_has_the_same_manifest(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 4)
    push.activations(layout, bucket)
    here = manifest.read(layout)
    assert bucket.read("nano/activations_manifest.json") == layout.manifest.read_bytes()
    entry = here["calm/a_0002"]
    assert entry["uri"] == f"{bucket.root}/nano/activations/calm/a_0002/r00003"
    assert [listed.key for listed in bucket.list("nano/activations/calm/a_0002/")] == [
        "nano/activations/calm/a_0002/r00003/activations.safetensors",
        "nano/activations/calm/a_0002/r00003/metadata.json",
    ]


def test_two_who_push_parts_of_one_experiment_get_one_manifest(layout: Layout, bucket: Bucket, tmp_path: Path) -> None:
    make_requests(layout, 4)
    whole = manifest.read(layout)
    for variant in ("control", "calm"):
        write_json(layout.manifest, {key: entry for key, entry in whole.items() if key.startswith(variant)})
        push.activations(layout, bucket)
    assert (manifest.read_remote(bucket, "nano") or {}).keys() == whole.keys()


def test_another_config_of_the_same_name_is_not_written_over(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 2)
    push.activations(layout, bucket)
    entries = manifest.read(layout)
    folder = layout.root / entries["calm/a_0001"]["save_dir"]
    folder.rename(folder.with_name("other"))
    place = {"save_dir": "nano/activations/calm/a_0001/other", "uri": None}
    changed = {**entries["calm/a_0001"], "request_id": "other", **place}
    write_json(layout.manifest, {**entries, "calm/a_0001": changed})
    with pytest.raises(InputError, match=r"calm/a_0001 under another config \(request r00001, here other\)"):
        push.activations(layout, bucket)
    push.activations(layout, bucket, replace=True)
    assert (manifest.read_remote(bucket, "nano") or {})["calm/a_0001"]["request_id"] == "other"


def damage(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_was_damaged_here_is_named_and_not_sent(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 6)
    damage(layout.root / "nano/activations/calm/a_0002/r00003/activations.safetensors")
    (layout.root / "nano/activations/calm/a_0003/r00005/metadata.json").unlink()
    with pytest.raises(RunError) as raised:
        push.activations(layout, bucket)
    said = str(raised.value).splitlines()
    assert said[0] == f"push: 2 of 6 are not in {bucket.root}; run it again to go on:"
    assert "calm/a_0002: nano/activations/calm/a_0002/r00003/activations.safetensors has other content" in said[1]
    assert "calm/a_0003: " in said[2]
    assert "r00005/metadata.json" in said[2]
    assert len(said) == 3
    assert (manifest.read_remote(bucket, "nano") or {}).keys() == manifest.read(layout).keys() - {
        "calm/a_0002",
        "calm/a_0003",
    }


def test_verify_names_what_is_damaged_on_either_side(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 6)
    push.activations(layout, bucket)
    inventory.verify(layout, bucket, read=True)
    damage(layout.root / "nano/activations/control/a_0001/r00000/activations.safetensors")
    replaced, cut, gone, rotten = (
        f"nano/activations/{request}/activations.safetensors"
        for request in ("calm/a_0001/r00001", "calm/a_0002/r00003", "calm/a_0003/r00005", "control/a_0002/r00002")
    )
    other = bucket.read(replaced)[::-1]
    bucket.put_bytes(other, replaced, over=bucket.stored(replaced))
    bucket.put_bytes(b"short", cut, over=bucket.stored(cut))
    bucket.delete(listed for listed in bucket.list(gone))
    with pytest.raises(RunError) as raised:
        inventory.verify(layout, bucket)
    assert str(raised.value).splitlines() == [
        "verify: 4 of 6 requests are not whole:",
        "  control/a_0001: nano/activations/control/a_0001/r00000/activations.safetensors has other content than its "
        "checksum says",
        f"  calm/a_0001: {bucket.uri(replaced)} has other content than its checksum says",
        f"  calm/a_0002: {bucket.uri(cut)} has 5 bytes, not {len(other)}",
        f"  calm/a_0003: {bucket.uri(gone)} is missing",
    ]
    # What it says of itself is what it should be, but S3 has no checksum of it, so that it is read.
    stored = bucket.stored(rotten)
    assert stored is not None
    bucket._wire.client.put_object(
        Bucket=bucket._name,
        Key=bucket._prefix + rotten,
        Body=bytes(stored.bytes),
        Metadata={"sha256": str(stored.sha256)},
    )
    for read in (False, True):
        with pytest.raises(RunError, match="verify: 5 of 6 requests are not whole"):
            inventory.verify(layout, bucket, read=read)


def test_pull_refuses_what_was_damaged_in_the_bucket(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 4)
    push.activations(layout, bucket)
    shutil.rmtree(layout.root)
    key = "nano/activations/calm/a_0001/r00001/activations.safetensors"
    bucket.put_bytes(bucket.read(key)[::-1], key, over=bucket.stored(key))
    with pytest.raises(RunError, match=rf"1 of 4 .*\n  calm/a_0001: {bucket.uri(key)} has other content than its"):
        pull.activations(layout, bucket, EVERYTHING)
    assert not (layout.root / key).exists()
    assert len(manifest.read(layout)) == 3


def test_push_replaces_other_content_only_when_told_to(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 2)
    push.activations(layout, bucket)
    key = "nano/activations/calm/a_0001/r00001/activations.safetensors"
    whole = bucket.read(key)
    bucket.put_bytes(b"other", key, over=bucket.stored(key))
    with pytest.raises(RunError, match="has other content; push --replace writes over it"):
        push.activations(layout, bucket)
    assert bucket.read(key) == b"other"
    push.activations(layout, bucket, replace=True)
    assert bucket.read(key) == whole


def test_files_here_are_deleted_only_where_the_bucket_has_them_whole(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 4)
    push.activations(layout, bucket)
    before = activations(layout)
    key = "nano/activations/calm/a_0001/r00001/activations.safetensors"
    sender = Sender(bucket, layout.root, set(), replace=False)
    bucket.put_bytes(b"other", key, over=bucket.stored(key))
    with pytest.raises(RunError, match="is not whole; the files here are kept"):
        sender.delete_entry(manifest.read(layout)["calm/a_0001"])
    assert activations(layout) == before
    push.activations(layout, bucket, replace=True, delete_local=True)
    assert activations(layout) == {}
    # Both go on from there.
    push.activations(layout, bucket)
    inventory.verify(layout, bucket)
    pull.activations(layout, bucket, EVERYTHING)
    assert activations(layout) == before


def test_pulls_a_selection(layout: Layout, bucket: Bucket, tmp_path: Path) -> None:
    make_requests(layout, 8)
    push.activations(layout, bucket)
    other = Layout(tmp_path / "other", "nano")
    pull.activations(other, bucket, Selection(variants=frozenset({"calm"}), samples=frozenset({"a_0001", "a_0004"})))
    assert manifest.read(other).keys() == {"calm/a_0001", "calm/a_0004"}
    assert len(activations(other)) == 4
    with pytest.raises(InputError, match="there is no variant rage in the bucket; there are calm, control"):
        pull.activations(other, bucket, Selection(variants=frozenset({"rage"})))
    with pytest.raises(InputError, match="has no activations of mega"):
        pull.activations(Layout(tmp_path, "mega"), bucket, EVERYTHING)


def test_pulls_layers_by_their_bytes_alone(layout: Layout, bucket: Bucket, door: Gate, tmp_path: Path) -> None:
    # Headers of a kilobyte before tensors of 32.
    make_requests(layout, 4, tokens=64, width=128, layers=8)
    push.activations(layout, bucket)
    other = Layout(tmp_path / "other", "nano")
    before = door.received, door.asked["GET"]
    pull.activations(other, bucket, Selection(layers=frozenset({2, 3})))
    received, asked = door.received - before[0], door.asked["GET"] - before[1]
    # For each: the header, the two layers side by side, token ids and positions (which may lie apart), metadata.
    assert asked <= 1 + 4 * 5
    assert received < 4 * (2 * 2 * 64 * 128 * 4 + (1 << 14) + 4096) + 16384
    for key, entry in manifest.read(other).items():
        assert entry["layers"] == [2, 3]
        name = f"{entry['save_dir']}/activations.safetensors"
        whole, part = load_file(layout.root / name), load_file(other.root / name)
        assert part.keys() == {key for key in whole if not key.startswith("layers.") or key[7] in "23"}, key
        assert all((part[name] == whole[name]).all() and part[name].dtype == whole[name].dtype for name in part)
    inventory.verify(other, bucket)
    # What is here is not fetched again, and what is here in part is never sent.
    received = door.received
    pull.activations(other, bucket, Selection(layers=frozenset({2, 3})))
    assert door.received - received < 8192
    push.activations(other, bucket)
    inventory.verify(layout, bucket, read=True)
    # And a whole file takes the place of a part.
    pull.activations(other, bucket, EVERYTHING)
    assert activations(other) == activations(layout)
    with pytest.raises(RunError, match="has no layer 8; it has 0, 1, 2, 3, 4, 5, 6, 7"):
        pull.activations(Layout(tmp_path / "third", "nano"), bucket, Selection(layers=frozenset({8})))


def test_results_go_and_come_too(layout: Layout, bucket: Bucket, tmp_path: Path) -> None:
    make_requests(layout, 2)
    texts = {"report.json": "{}", "calm/a_0001/sample.json": '{"a": 1}', "artifacts/probes/x.json": "[]"}
    for name, text in {**texts, ".lock": "", "server.log": "x"}.items():
        write_text(layout.folder / name, text)
    push.results(layout, bucket)
    write_text(layout.folder / "report.json", '{"newer": 1}')
    push.results(layout, bucket)
    other = Layout(tmp_path / "other", "nano")
    pull.results(other, bucket)
    expected = {**texts, "report.json": '{"newer": 1}', ".lock": ""}
    assert content(other.folder) == {name: text.encode() for name, text in expected.items()}


def test_a_manifest_that_leads_elsewhere_is_refused(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 2)
    entries = manifest.read(layout)
    for save_dir in ("../../etc", "nano/activations/../../x", "/etc", "other/activations/calm"):
        entries["calm/a_0001"]["save_dir"] = save_dir
        bucket.put_bytes(
            json.dumps(entries).encode(),
            "nano/activations_manifest.json",
            over=bucket.stored("nano/activations_manifest.json"),
        )
        with pytest.raises(RunError, match="is no manifest of nano's activations"):
            pull.activations(layout, bucket, EVERYTHING)


def test_prune_deletes_what_no_manifest_names(
    layout: Layout, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    make_requests(layout, 2)
    push.activations(layout, bucket)
    bucket.put_bytes(b"old", "nano/activations/calm/a_0001/old/metadata.json")
    inventory.prune(bucket, "nano", older_than=timedelta(hours=24), delete=True)
    assert "prune: 0 deleted" in capsys.readouterr().err
    bucket._wire.client.create_multipart_upload(Bucket=bucket._name, Key=bucket._prefix + "nano/activations/calm/x")
    inventory.prune(bucket, "nano", older_than=timedelta(0), delete=False)
    said = capsys.readouterr().err
    assert f"prune: {bucket.uri('nano/activations/calm/a_0001/old/metadata.json')} (3 bytes)" in said
    assert "(unfinished upload)" in said
    assert "prune: 2 could be deleted; --yes does it" in said
    inventory.prune(bucket, "nano", older_than=timedelta(0), delete=True)
    assert len(list(bucket.list("nano/activations/"))) == 4
    assert list(bucket.unfinished("")) == []
    inventory.verify(layout, bucket)


def test_prune_sees_what_was_pushed_while_it_listed(layout: Layout, bucket: Bucket) -> None:
    make_requests(layout, 2)
    whole = manifest.read(layout)
    write_json(layout.manifest, {"calm/a_0001": whole["calm/a_0001"]})
    push.activations(layout, bucket)
    write_json(layout.manifest, whole)
    unfinished, entry = bucket.unfinished, whole["control/a_0001"]
    key = manifest.paths(entry)[1][0]
    bucket.put_bytes((layout.root / key).read_bytes(), key)
    with pytest.MonkeyPatch.context() as patch:

        def meanwhile(folder: str) -> Iterator[Listed]:
            patch.undo()
            push.activations(layout, bucket)
            return unfinished(folder)

        patch.setattr(bucket, "unfinished", meanwhile)
        inventory.prune(bucket, "nano", older_than=timedelta(0), delete=True)
    inventory.verify(layout, bucket)


def test_ls_says_what_is_complete(layout: Layout, uri: str, bucket: Bucket, door: Gate, emopfx: Command) -> None:
    make_requests(layout, 6)
    push.activations(layout, bucket)
    bucket.delete(listed for listed in bucket.list("nano/activations/calm/a_0001/"))
    code, said = emopfx(layout, uri, door, "ls")
    assert code == 0
    assert [line.split()[:3] for line in said.splitlines() if "control" in line or "calm" in line] == [
        ["control", "3", "3"],
        ["calm", "3", "2"],
    ]


def test_credentials_are_neither_printed_nor_kept(
    layout: Layout, uri: str, bucket: Bucket, door: Gate, emopfx: Command
) -> None:
    make_requests(layout, 2)
    printed = [emopfx(layout, uri, door, name)[1] for name in ("push", "verify", "ls")]
    printed.append(emopfx(layout, "s3://no-such-bucket", door, "push")[1])
    assert "does not exist" in printed[-1]
    kept = [*content(layout.root).values(), *(bucket.read(listed.key) for listed in bucket.list(""))]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert not any(CREDENTIALS[name] in text for text in printed)
        assert not any(CREDENTIALS[name].encode() in text for text in kept)


def test_a_secret_in_an_address_is_refused_and_not_repeated(
    layout: Layout, uri: str, door: Gate, emopfx: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_requests(layout, 1)
    for flags in (
        ("--endpoint-url", "http://me:hush@127.0.0.1:1"),
        ("--uri", "s3://me:hush@bucket/prefix"),
        ("--uri", "s3://me:hush"),
        ("--uri", "S3://me:hush@bucket"),
        ("--endpoint-url", "foo"),
    ):
        code, said = emopfx(layout, uri, door, "push", *flags)
        assert code == 2
        assert re.fullmatch("emopfx: an (S3 URI|endpoint) is .*\n", said)
        assert "hush" not in said
    # Nor one that boto3's own settings have.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", door.url.replace("//", "//me:hush@"))
    door.closed = True
    with Bucket(uri) as bucket:
        give_up_after(1, monkeypatch)
        with pytest.raises(RunError) as raised:
            bucket.read("x")
    assert "hush" not in str(raised.value)


def test_a_name_is_checked_before_anything_is_made(layout: Layout, uri: str, door: Gate, emopfx: Command) -> None:
    for name in ("../victim", "a/b", "", "Nano", "nano\n"):
        for verb in ("push", "pull", "verify", "prune", "ls"):
            code, said = emopfx(Layout(layout.root, name), uri, door, verb)
            assert (code, "emopfx: --name must be" in said) == (2, True)
    for verb, reason in (("push", "there is no experiment nano in"), ("pull", "has no activations of nano")):
        code, said = emopfx(layout, uri, door, verb)
        assert (code, reason in said) == (2, True)
    assert list(layout.root.parent.rglob("*")) == []


@pytest.mark.parametrize("flag", ["--with-results", "--results"])
def test_results_go_along_where_they_are_asked_for(
    layout: Layout, uri: str, door: Gate, emopfx: Command, tmp_path: Path, flag: str
) -> None:
    make_requests(layout, 2)
    write_text(layout.report("json"), "{}")
    assert emopfx(layout, uri, door, "push", flag)[0] == 0
    other = Layout(tmp_path / "other", "nano")
    # In front of other flags too.
    assert emopfx(other, uri, door, "pull", flag, "--layers", "0")[0] == 0
    assert {"report.json", "activations_manifest.json"} < content(other.folder).keys()
    code, said = emopfx(other, uri, door, "verify", "--results")
    assert (code, "requires an argument" in said) == (2, True)


def test_results_alone_are_pulled_with_the_addresses_of_the_rest(
    layout: Layout, uri: str, door: Gate, emopfx: Command, tmp_path: Path
) -> None:
    make_requests(layout, 2)
    write_text(layout.report("json"), "{}")
    assert emopfx(layout, uri, door, "push", "--with-results")[0] == 0
    other = Layout(tmp_path / "other", "nano")
    code, said = emopfx(other, uri, door, "pull", "--results-only")
    assert (code, f"pull: 2 requests are read from {uri} where they are not here" in said) == (0, True)
    assert content(other.folder).keys() == {".lock", "report.json", "activations_manifest.json"}
    code, said = emopfx(other, uri, door, "pull", "--results-only", "--layers", "2")
    assert (code, "--results-only takes no" in said) == (2, True)
