"""How far each token of each sample lies along a direction, for colouring its text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from emopfx.analysis.activations import Activations, Site
from emopfx.layout import write_text

METADATA = "metadata.json"
LARGEST_METADATA = 1 << 26


class Direction(NamedTuple):
    """A direction `[width]` at a place."""

    site: Site
    vector: npt.NDArray[np.float32]


def write_projections(path: Path, activations: Activations, directions: Mapping[str, Direction]) -> list[str]:
    """Write a line per sample: its captured tokens, and each token's z-score along each direction.

    0 is the mean over all tokens of all samples, and positive is along the direction.

    Args:
        path: The file to write.
        activations: Where tokens' activations are.
        directions: The directions, by name.

    Returns:
        The names.
    """
    values = {name: _standardised(activations, direction) for name, direction in directions.items()}
    lines = []
    for key in activations.keys:
        own = {name: [round(float(z), 2) for z in found[key]] for name, found in values.items()}
        lines.append(json.dumps({"key": key, "tokens": _tokens(activations, key), "values": own}, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in lines))
    return list(directions)


def _standardised(activations: Activations, direction: Direction) -> dict[str, npt.NDArray[np.floating]]:
    along = {key: rows @ direction.vector for key, rows in activations.rows(direction.site, "all")}
    every = np.concatenate([np.zeros(0, np.float32), *along.values()])
    mean, deviation = (every.mean(), every.std()) if len(every) else (0.0, 1.0)
    return {key: (values - mean) / (deviation or 1.0) for key, values in along.items()}


def _tokens(activations: Activations, key: str) -> list[str]:
    """Return the texts of a sample's captured tokens, none where they were not recorded."""
    name = f"{activations.save_dir(key)}/{METADATA}"
    try:
        record = json.loads(activations.source.read(name, 0, LARGEST_METADATA))
    except (OSError, ValueError):
        return []
    tokens: list[str] = record.get("token_texts", [])
    return tokens
