"""Runs that keep what they make in S3, on the real server, the built-in model and a real S3 service."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from emopfx import cli, units
from emopfx.layout import Layout
from emopfx.sampling import SamplingError
from emopfx.storage import inventory, manifest, pull
from emopfx.storage.pull import Selection
from emopfx.storage.s3 import Bucket
from emopfx.units import Unit
from tests.emopfx.storage.s3_service import CREDENTIALS, Gate, content, gate, give_up_after, moto

STORIES = Path(__file__).parents[2] / "manifests" / "experiments" / "demo-stories.jsonl"


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    for key, value in CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    with moto() as service, gate(service) as control:
        client = boto3.client("s3", endpoint_url=service)
        client.create_bucket(Bucket="kept")
        client.close()
        yield control


def run(root: Path, door: Gate, **storage: Any) -> int:
    config = {
        "name": "nano",
        "model": {"name": "tiny", "dtype": "float32"},
        "dataset": {"path": str(STORIES), "samples": 3},
        "generation": {"max_tokens": 30},
        "variants": ["control", "calm"],
        "storage": {"s3": {"uri": "s3://kept/here", "endpoint_url": door.url, **storage}},
    }
    file = root.parent / "experiment.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "-f", str(file), "--results", str(root)])
    return int(end.value.code or 0)


def test_what_a_run_makes_is_in_the_bucket_when_it_is_done(
    tmp_path: Path, door: Gate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "results", "nano")
    # Nobody answers: the answers stay, and what is missing in the bucket is listed.
    door.closed = True
    give_up_after(1, monkeypatch)
    monkeypatch.setattr("emopfx.storage.parallel.PAUSES", ())
    assert run(layout.root, door, push="continuous") == 1
    said = capsys.readouterr().err
    assert "6 generated" in said
    assert "report.json" in content(layout.folder)
    before = content(layout.folder / "activations")
    assert len(before) == 12

    # The next run generates nothing and sends everything.
    door.closed = False
    monkeypatch.undo()
    for key, value in CREDENTIALS.items():
        monkeypatch.setenv(key, value)
    assert run(layout.root, door, push=True) == 0
    assert "0 requests sent" in capsys.readouterr().err
    with Bucket("s3://kept/here", door.url) as bucket:
        inventory.verify(layout, bucket, read=True)
        names = {listed.key for listed in bucket.list("nano/")}
        other = Layout(tmp_path / "elsewhere", "nano")
        pull.activations(other, bucket, Selection())
        pull.results(other, bucket)
    assert content(other.folder / "activations") == before
    results = {name for name in content(layout.folder) if name not in (".lock", "server.log")}
    assert names == {f"nano/{name}" for name in results}

    # What is only there is not generated again.
    with pytest.raises(SystemExit) as end:
        cli.main(["activations", "push", "--name", "nano", "--results", str(layout.root), "--delete-local"])
    assert end.value.code == 0
    assert content(layout.folder / "activations") == {}
    assert run(layout.root, door, push=True) == 0
    assert "0 requests sent" in capsys.readouterr().err
    assert {
        str(entry["uri"]).startswith("s3://kept/here/nano/activations/") for entry in manifest.read(layout).values()
    } == {True}

    # Nor what is there as a whole and here in part.
    place = ["--name", "nano", "--results", str(layout.root)]
    with pytest.raises(SystemExit) as end:
        cli.main(["activations", "pull", *place, "--layers", "1"])
    assert end.value.code == 0
    partial = content(layout.folder / "activations")
    assert run(layout.root, door, push=True) == 0
    assert "0 requests sent" in capsys.readouterr().err
    assert content(layout.folder / "activations") == partial
    assert {tuple(entry["layers"]) for entry in manifest.read(layout).values()} == {(1,)}


def test_answers_are_sent_while_others_are_generated(tmp_path: Path, door: Gate) -> None:
    layout = Layout(tmp_path / "results", "nano")
    sent: list[str] = []

    def end(*arguments: Any) -> None:
        with Bucket("s3://kept/here", door.url) as bucket:
            sent.extend(listed.key for listed in bucket.list("nano/"))

    with pytest.MonkeyPatch.context() as patch:
        # What is in the bucket when the stages have ended, before the rest is sent.
        patch.setattr("emopfx.storage.push.everything", end)
        assert run(layout.root, door, push="continuous") == 0
    assert sent == [f"nano/activations/{name}" for name in content(layout.folder / "activations")]


def test_what_there_is_goes_to_the_bucket_where_too_many_samples_failed(
    tmp_path: Path, door: Gate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "results", "nano")
    saved = units.save

    def save(unit: Unit, *arguments: Any) -> None:
        if unit.variant == "calm":
            raise SamplingError("no")
        saved(unit, *arguments)

    monkeypatch.setattr("emopfx.stages.generate.save", save)
    assert run(layout.root, door, push=True) == 1
    said = capsys.readouterr().err
    assert "3 of 6 samples failed" in said.splitlines()[-1]
    with Bucket("s3://kept/here", door.url) as bucket:
        assert (manifest.read_remote(bucket, "nano") or {}).keys() == manifest.read(layout).keys()
        assert len(manifest.read(layout)) == 3
        inventory.verify(layout, bucket)


def test_another_configs_place_is_refused_before_anything_is_generated(
    tmp_path: Path, door: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout(tmp_path / "results", "nano")
    with Bucket("s3://kept/here", door.url) as bucket:
        bucket.put_bytes(b'{"hash": "other"}', "nano/experiment_config.json")
    assert run(layout.root, door, push="continuous") == 2
    assert "has results of another config (hash other, here" in capsys.readouterr().err
    assert not (layout.folder / "server.log").exists()
