"""Probes of activations that are only in S3."""

import shutil

import numpy as np

from emopfx.analysis.activations import LocalFiles, having
from emopfx.analysis.probes import probe
from emopfx.config import Probes as Settings
from emopfx.layout import Layout, write_json
from emopfx.storage import push
from emopfx.storage.s3 import Bucket
from emopfx.storage.source import PushedFiles
from tests.emopfx.analysis.planted import HOOK_POINT, TOKENS, Floats, experiment
from tests.emopfx.storage.s3_service import Gate

AXIS = np.eye(16, dtype=np.float32)
NOTHING = np.zeros(16, np.float32)
LAYERS = 3


def plant(layer: int, variant: str, correct: bool) -> Floats:
    return 4 * AXIS[3] if layer == 1 and variant == "calm" else NOTHING


def test_probes_from_a_bucket_equal_those_from_the_disk(layout: Layout, bucket: Bucket, door: Gate) -> None:
    answers = experiment(layout.root, ["control", "calm"], 30, plant, layers=LAYERS)
    write_json(
        layout.manifest,
        {
            answer.key: {**(answer.breadcrumb or {}), "request_id": answer.question, "uri": None, "tokens": TOKENS}
            for answer in answers
        },
    )
    settings = Settings(features=["last"], folds=3)
    here = probe(LocalFiles(layout.root), answers, settings, layout.folder / "here", {"experiment": "nano"})
    push.activations(layout, bucket)
    size = sum(file["bytes"] for answer in answers for file in (answer.breadcrumb or {})["files"])
    shutil.rmtree(layout.folder / "activations")
    with PushedFiles(layout, door.url) as source:
        assert all(having(source, answers))
        door.asked.clear()
        before = door.received
        there = probe(source, answers, settings, layout.folder / "there", {"experiment": "nano"})
    assert there == here
    assert {probe.hook_point for task in there.tasks for probe in task.probes} == {HOOK_POINT}
    assert door.asked.keys() == {"GET"}
    assert door.received - before <= 2 * size
