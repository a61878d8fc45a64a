"""Probes of activations that are only in S3."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from emopfx.analysis import features
from emopfx.analysis.activations import Activations, having, open_answers
from emopfx.analysis.answers import Answer
from emopfx.analysis.probes import probe
from emopfx.analysis.schema import Probes
from emopfx.config import Probes as Settings
from emopfx.layout import Layout, write_json
from emopfx.storage import push
from emopfx.storage.s3 import Bucket
from emopfx.storage.source import PushedFiles
from tests.emopfx.analysis.planted import HOOK_POINT, TOKENS, Floats, LocalFiles, experiment, write
from tests.emopfx.storage.s3_service import Gate

AXIS = np.eye(16, dtype=np.float32)
NOTHING = np.zeros(16, np.float32)
LAYERS = 3
# The first read of a file, which holds its header and positions.
HEAD = 1 << 14


def plant(layer: int, variant: str, correct: bool) -> Floats:
    return 4 * AXIS[3] if layer == 1 and variant == "calm" else NOTHING


def keep(layout: Layout, answers: list[Answer]) -> None:
    """Write the manifest of answers."""
    entries = {
        answer.key: {**(answer.breadcrumb or {}), "request_id": answer.question, "uri": None, "tokens": TOKENS}
        for answer in answers
    }
    write_json(layout.manifest, entries)


def run(opened: Activations, answers: list[Answer], folder: Path) -> Probes:
    settings = Settings(features=["last"], folds=3)
    return probe(opened, answers, "control", settings, folder, {"experiment": "nano"})


def test_probes_from_a_bucket_equal_those_from_the_disk(layout: Layout, bucket: Bucket, door: Gate) -> None:
    answers = experiment(layout.root, ["control", "calm"], 30, plant, layers=LAYERS)
    keep(layout, answers)
    here = run(open_answers(LocalFiles(layout.root), answers), answers, layout.folder / "here")
    push.activations(layout, bucket)
    size = sum(file["bytes"] for answer in answers for file in (answer.breadcrumb or {})["files"])
    shutil.rmtree(layout.folder / "activations")
    with PushedFiles(layout) as source:
        assert all(having(source, answers))
        door.asked.clear()
        before = door.received
        there = run(open_answers(source, answers), answers, layout.folder / "there")
    assert there == here
    assert {probe.hook_point for task in there.tasks for probe in task.probes} == {HOOK_POINT}
    assert door.asked.keys() == {"GET"}
    assert door.received - before <= 2 * size


# Where rows of the second hook point are 98 kB behind those of the first, and 197 kB.
@pytest.mark.parametrize(("width", "gets", "apart"), [(4096, 1, TOKENS - 1), (8192, 2, 0)])
def test_a_layer_is_read_by_one_get_where_its_hook_points_lie_close(
    layout: Layout, bucket: Bucket, door: Gate, width: int, gets: int, apart: int
) -> None:
    random_numbers = torch.Generator().manual_seed(0)
    names = [f"layers.{layer}.{hook_point}" for layer in (0, 1) for hook_point in (HOOK_POINT, "mlp.output")]
    answers = [
        write(
            layout.root,
            f"{variant}/q_{number}",
            {name: torch.randn(TOKENS, width, generator=random_numbers) for name in names},
            correct=number % 2 == 0,
        )
        for variant in ("control", "calm")
        for number in range(2)
    ]
    keep(layout, answers)
    local = open_answers(LocalFiles(layout.root), answers)
    having: dict[features.FeatureName, list[str]] = {"last": local.keys}
    here = [features.read(local, local.sites[at : at + 2], having) for at in (0, 2)]
    push.activations(layout, bucket, delete_local=True)
    with PushedFiles(layout) as source:
        opened = open_answers(source, answers)
        for number, found in enumerate(here):
            asked, received = door.asked["GET"], door.received
            there = features.read(opened, opened.sites[2 * number : 2 * number + 2], having)
            assert door.asked["GET"] - asked == gets * len(answers)
            # Rows of two hook points, and what lies between them in the layer.
            assert door.received - received == (2 + apart) * width * 4 * len(answers)
            assert {site: rows["last"].tolist() for site, rows in there.items()} == {
                site: rows["last"].tolist() for site, rows in found.items()
            }


def test_one_layer_is_read_by_its_bytes_alone_and_what_is_before_it_once(
    layout: Layout, bucket: Bucket, door: Gate
) -> None:
    answers = experiment(layout.root, ["control", "calm"], 5, lambda *_: np.zeros(4096, np.float32), width=4096)
    keep(layout, answers)
    local = open_answers(LocalFiles(layout.root), answers)
    before = dict(local.rows(local.sites[1], "all"))
    push.activations(layout, bucket)
    shutil.rmtree(layout.folder / "activations")
    door.asked.clear()
    received = door.received
    with PushedFiles(layout) as source:
        opened = open_answers(source, answers)
        opening = door.asked["GET"], door.received - received
        rows = dict(opened.rows(opened.sites[1], "all"))
        assert {key: (rows[key] == before[key]).all() for key in before} == dict.fromkeys(before, True)
        asked, moved = door.asked["GET"] - opening[0], door.received - received - opening[1]
        # One ranged GET for each file, of just the layer's bytes.
        assert (asked, moved) == (len(answers), len(answers) * TOKENS * 4096 * 4)
        assert opening == (len(answers), len(answers) * HEAD)
        # What is opened again is not asked for again.
        open_answers(source, answers)
    assert door.asked == {"GET": 2 * len(answers)}
