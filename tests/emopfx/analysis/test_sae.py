import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from emopfx.analysis.activations import LocalFiles
from emopfx.analysis.sae import TopKSae, load, save, train
from emopfx.analysis.saes import train_all
from emopfx.config import Sae as Settings
from emopfx.errors import InputError
from tests.emopfx.analysis.planted import HOOK_POINT, TOKENS, experiment

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
    batches = (made_of(features, BATCH, draw) for _ in range(STEPS))
    return train(batches, 2 * TRUE, ACTIVE, STEPS * BATCH, 0), features, made_of(features, 2000, draw)


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
    (found,) = train_all(LocalFiles(tmp_path), answers, settings, folder, {"model_name": "planted"}).saes
    assert (found.layer, found.hook_point, found.width, found.k) == (1, HOOK_POINT, 32, 4)
    assert 0.2 < found.explained_variance < 1
    assert 0 <= found.dead < 32
    sure = [feature for feature in found.features if feature.q < 0.001]
    assert sure
    assert {feature.variant for feature in sure} == {"calm"}
    assert all(feature.q > 0.05 for feature in found.features if feature.variant == "anxiety")
    # What differs most points along the planted axis, or away from it.
    sae = load(folder / f"layers.1.{HOOK_POINT}")
    assert abs(float(sae.decoder.detach()[sure[0].feature] @ torch.from_numpy(axis))) > 0.5
    assert TOKENS * 40 * 3 * sure[0].active > 1


def test_a_place_that_was_not_captured_is_refused(tmp_path: Path) -> None:
    answers = experiment(tmp_path, ["control", "calm"], 2, lambda layer, variant, correct: NOTHING, layers=1)
    with pytest.raises(InputError, match=r"analysis\.sae: layers\.7\.input_layernorm\.output was not captured"):
        train_all(LocalFiles(tmp_path), answers, Settings(layers=[7]), tmp_path, {})
