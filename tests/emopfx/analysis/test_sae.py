import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from emopfx.analysis.activation_file import Site
from emopfx.analysis.activations import open_answers
from emopfx.analysis.answers import Answer
from emopfx.analysis.sae import BATCH as BATCH_ROWS
from emopfx.analysis.sae import TopKSae, batches, load, save, train
from emopfx.analysis.saes import chosen, train_one
from emopfx.analysis.schema import Saes
from emopfx.config import Sae as Settings
from tests.emopfx.analysis.planted import HOOK_POINT, TOKENS, LocalFiles, experiment

INPUTS, TRUE, ACTIVE = 16, 24, 2
STEPS, BATCH = 600, 256
NOTHING = np.zeros(16, np.float32)


def made_of(features: torch.Tensor, count: int, draw: torch.Generator) -> torch.Tensor:
    """Return rows that are each the sum of a few of the features, `[count, INPUTS]`, about a centre that isn't 0."""
    chosen = torch.rand(count, TRUE, generator=draw).topk(ACTIVE).indices
    amounts = torch.zeros(count, TRUE).scatter(1, chosen, 1 + torch.rand(count, ACTIVE, generator=draw))
    return 30 * (amounts @ features + 0.7)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recovered() -> tuple[TopKSae, torch.Tensor, torch.Tensor]:
    """An autoencoder, the features that its rows were made of, and rows it hasn't seen."""
    draw = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(TRUE, INPUTS, generator=draw), dim=1)
    pools = (made_of(features, BATCH, draw) for _ in range(STEPS))
    return train(pools, 2 * TRUE, ACTIVE, STEPS * BATCH, 0).cpu(), features, made_of(features, 2000, draw)


def run(root: Path, answers: list[Answer], layer: int, settings: Settings, folder: Path) -> Saes:
    opened = open_answers(LocalFiles(root), answers)
    return train_one(opened, answers, "control", Site(layer, HOOK_POINT), settings, folder, {"model_name": "planted"})


def test_the_features_that_rows_are_made_of_are_found(recovered: tuple[TopKSae, torch.Tensor, torch.Tensor]) -> None:
    sae, features, rows = recovered
    with torch.no_grad():
        found = sae.encode(rows)
        error = (rows - sae.decode(found)).square().sum() / (rows - rows.mean(0)).square().sum()
        likeness = (features @ sae.decoder.T).max(1).values
    assert float(1 - error) > 0.8
    assert float((likeness > 0.9).float().mean()) > 0.7
    assert int((found > 0).sum(1).max()) <= ACTIVE
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(2 * TRUE))


def test_files_are_those_of_saelens(recovered: tuple[TopKSae, torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    sae, _, rows = recovered
    save(sae, tmp_path, "layers.1.output", {"model_name": "tiny"})
    assert {path.name for path in tmp_path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["d_in"], config["d_sae"], config["k"]) == ("topk", INPUTS, 2 * TRUE, ACTIVE)
    assert config["metadata"] == {
        "sae_lens_version": "6.0.0",
        "hook_name": "layers.1.output",
        "model_name": "tiny",
    }
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path).encode(rows), sae.encode(rows))


def test_a_feature_that_differs_between_variants_is_found_and_others_are_not(tmp_path: Path) -> None:
    axis = np.eye(16, dtype=np.float32)[3]
    answers = experiment(
        tmp_path,
        ["control", "calm", "anxiety"],
        40,
        lambda layer, variant, correct: 25 * axis if variant == "calm" else NOTHING,
        layers=2,
    )
    settings = Settings(layers=[1], expansion=2, k=4, tokens=60_000)
    folder = tmp_path / "artifacts"
    (found,) = run(tmp_path, answers, 1, settings, folder).saes
    assert (found.layer, found.hook_point, found.width, found.k) == (1, HOOK_POINT, 32, 4)
    assert 0.2 < found.explained_variance < 1
    assert 0 <= found.dead < 32
    sure = [feature for feature in found.features if feature.q < 0.001]
    assert sure
    assert {feature.variant for feature in sure} == {"calm"}
    assert all(feature.q > 0.05 for feature in found.features if feature.variant == "anxiety")
    # What differs most points along the planted axis, or away from it.
    sae = load(folder)
    assert abs(float(sae.decoder.detach()[sure[0].feature] @ torch.from_numpy(axis))) > 0.5
    assert TOKENS * 40 * 3 * sure[0].active > 1


def test_a_place_without_rows_and_a_single_question_are_skipped_with_the_reason(tmp_path: Path) -> None:
    answers = experiment(tmp_path, ["control", "calm"], 2, lambda layer, variant, correct: NOTHING, layers=1)
    settings, folder = Settings(layers=[0], tokens=100), tmp_path / "artifacts"
    assert run(tmp_path, answers, 7, settings, folder).skipped == [
        f"layers.7.{HOOK_POINT}: it was not captured, or can't be read"
    ]
    single = [answer for answer in answers if answer.question == "q_0000"]
    assert run(tmp_path, single, 0, settings, folder).skipped == [
        f"layers.0.{HOOK_POINT}: fewer than two questions have activations"
    ]
    assert not folder.exists()
    assert run(tmp_path, answers, 0, settings, folder).skipped == []


def test_layers_count_from_the_end_too() -> None:
    settings = Settings(layers=[1, -1, 3], hook_points=None)
    assert chosen(settings, ["a", "b"], 4) == [Site(1, "a"), Site(1, "b"), Site(3, "a"), Site(3, "b")]
    assert chosen(Settings(layers=[-4], hook_points=["b"]), ["a", "b"], 4) == [Site(0, "b")]


def test_pools_are_cut_into_batches_of_like_size() -> None:
    """A pool a little larger than a batch has no small rest, that would move the weights as far as a whole one."""
    pool = torch.randn(2 * BATCH_ROWS + 5, 4)
    parts = list(batches(pool))
    assert torch.equal(torch.cat(parts), pool)
    assert min(map(len, parts)) >= BATCH_ROWS
    assert [len(part) for part in batches(pool[:3])] == [3]
