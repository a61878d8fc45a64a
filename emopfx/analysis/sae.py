"""A TopK sparse autoencoder: its training, and its files in SAELens's format."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from emopfx.layout import commit, write_json

# As in the paper: the weight of the dead features' loss, and the learning rate at a width of 2^14.
DEAD_WEIGHT = 1 / 32
RATE, RATE_WIDTH = 2e-4, 2**14
# Features that were not active for this share of all training tokens count as dead.
DEAD_SHARE = 0.05
# Rows of one step, at least; up to twice as many.
BATCH = 2048
# The version of SAELens whose format this is; it takes files without one for older.
FORMAT = "6.0.0"


class TopKSae(nn.Module):
    """x ≈ decoder · TopK(ReLU(encoder · (x - b_dec) + b_enc)) + b_dec, with decoder rows of length 1.

    Gao et al. 2024, Scaling and evaluating sparse autoencoders (arXiv:2406.04093).

    Args:
        inputs: Length of x.
        width: Number of features.
        k: How many of them are active at once, at most.
        seed: Of the first weights.
    """

    def __init__(self, inputs: int, width: int, k: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        decoder = nn.functional.normalize(torch.randn(width, inputs, generator=draw), dim=1)
        self.k = min(k, width)
        self.decoder = nn.Parameter(decoder)
        self.encoder = nn.Parameter(decoder.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(width))
        self.b_dec = nn.Parameter(torch.zeros(inputs))

    def before(self, rows: Tensor) -> Tensor:
        """Return the features before all but the k largest are set to zero, `[n, width]`."""
        return (rows - self.b_dec) @ self.encoder + self.b_enc

    def encode(self, rows: Tensor) -> Tensor:
        """Return the features of rows `[n, inputs]`, `[n, width]`."""
        return _largest(self.before(rows), self.k)

    def decode(self, features: Tensor) -> Tensor:
        """Return what rows features stand for, `[n, inputs]`."""
        return features @ self.decoder + self.b_dec


def _largest(values: Tensor, k: int) -> Tensor:
    top = values.topk(k, dim=-1)
    return torch.zeros_like(values).scatter(-1, top.indices, top.values.relu())


def train(pools: Iterable[Tensor], width: int, k: int, tokens: int, seed: int) -> TopKSae:
    """Train on rows as they come.

    Rows are scaled to a mean square of 1 while training, as the first pool has it; the scale is put into the biases
    afterwards. Dead features learn what the others leave over (the paper's AuxK loss).

    Args:
        pools: Mixed rows `[n, inputs]`, in all at least as many as there are tokens to train on.
        width: Number of features.
        k: How many of them are active at once.
        tokens: How many rows to train on.
        seed: Of the first weights.

    Returns:
        An autoencoder of the rows as they are, on the device that trained it.
    """
    source = iter(pools)
    pool = next(source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = float(pool.square().mean().sqrt()) or 1.0
    centre = pool.mean(0)
    spread = float((pool - centre).square().mean()) / scale**2 or 1.0
    sae = TopKSae(pool.shape[1], width, k, seed).to(device)
    sae.b_dec.data.copy_(centre / scale)
    optimizer = torch.optim.Adam(sae.parameters(), lr=RATE * math.sqrt(RATE_WIDTH / width), eps=6.25e-10)
    idle, seen = torch.zeros(width, device=device), 0
    while True:
        for batch in batches(pool):
            features = _step(sae, batch.to(device) / scale, spread, optimizer, idle > DEAD_SHARE * tokens)
            idle = torch.where((features > 0).any(0), 0, idle + len(batch))
            seen += len(batch)
            if seen >= tokens:
                sae.b_enc.data *= scale
                sae.b_dec.data *= scale
                return sae
        pool = next(source)


def batches(pool: Tensor) -> Sequence[Tensor]:
    """Split rows into batches of like size: a small rest would move the weights as far as a whole batch."""
    found: Sequence[Tensor] = pool.tensor_split(max(1, len(pool) // BATCH))
    return found


def _step(sae: TopKSae, rows: Tensor, spread: float, optimizer: torch.optim.Optimizer, dead: Tensor) -> Tensor:
    """Take one step of training, and return the features of the rows; errors are in units of the rows' variance."""
    before = sae.before(rows)
    features = _largest(before, sae.k)
    error = rows - sae.decode(features)
    loss = error.square().mean() / spread
    count = min(int(dead.sum()), max(1, rows.shape[1] // 2))
    if count:
        left = _largest(before.masked_fill(~dead, -torch.inf), count) @ sae.decoder
        loss = loss + DEAD_WEIGHT * (error.detach() - left).square().mean() / spread
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
    sae.decoder.data.copy_(nn.functional.normalize(sae.decoder.data, dim=1))
    return features.detach()


def save(sae: TopKSae, folder: Path, hook_name: str, about: dict[str, Any]) -> None:
    """Write cfg.json and sae_weights.safetensors as SAELens 6 has them; cfg.json comes last.

    `SAE.load_from_disk(folder)` of SAELens loads them.

    Args:
        sae: The autoencoder.
        folder: Where to.
        hook_name: The tensor's name in the activation files.
        about: More metadata: the model, the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"W_enc": sae.encoder, "b_enc": sae.b_enc, "W_dec": sae.decoder, "b_dec": sae.b_dec}
    temporary = folder / ".sae_weights.safetensors.tmp"
    save_file({name: value.data.cpu().contiguous() for name, value in weights.items()}, temporary)
    temporary.chmod(0o644)
    commit(temporary, folder / "sae_weights.safetensors")
    config = {
        "architecture": "topk",
        "d_in": sae.decoder.shape[1],
        "d_sae": sae.decoder.shape[0],
        "k": sae.k,
        "rescale_acts_by_decoder_norm": False,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "dtype": "float32",
        "device": "cpu",
        "metadata": {"sae_lens_version": FORMAT, "hook_name": hook_name, **about},
    }
    write_json(folder / "cfg.json", config)


def load(folder: Path) -> TopKSae:
    """Read what `save` wrote."""
    from safetensors.torch import load_file

    config, weights = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    sae = TopKSae(config["d_in"], config["d_sae"], config["k"], 0)
    sae.load_state_dict(
        {"encoder": weights["W_enc"], "decoder": weights["W_dec"], "b_enc": weights["b_enc"], "b_dec": weights["b_dec"]}
    )
    return sae
