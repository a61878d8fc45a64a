"""SAELens reads our autoencoders: `make saelens` runs this in an environment of its own."""

from pathlib import Path

import torch
from sae_lens import SAE

from emopfx.analysis.sae import TopKSae, save, train


def trained() -> tuple[TopKSae, torch.Tensor]:
    torch.manual_seed(0)
    rows = 3 + 20 * torch.randn(512, 12)
    return train(iter([rows] * 20), 48, 5, 20 * 512, 0).cpu(), rows


def test_saelens_loads_it_and_computes_the_same(tmp_path: Path) -> None:
    sae, rows = trained()
    save(sae, tmp_path / "layers.3.output", "layers.3.output", {"model_name": "tiny", "experiment": "nano"})
    loaded = SAE.load_from_disk(tmp_path / "layers.3.output")
    assert loaded.cfg.architecture() == "topk"
    assert (loaded.cfg.d_in, loaded.cfg.d_sae, loaded.cfg.k) == (12, 48, 5)
    assert (loaded.cfg.metadata.hook_name, loaded.cfg.metadata.model_name) == ("layers.3.output", "tiny")
    with torch.no_grad():
        features = loaded.encode(rows)
        torch.testing.assert_close(features, sae.encode(rows))
        torch.testing.assert_close(loaded.decode(features), sae.decode(features))
        torch.testing.assert_close(loaded(rows), sae.decode(sae.encode(rows)))
