"""How far each token of each sample lies along a direction, for colouring its text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from emopfx.analysis.activation_file import Floats, Site
from emopfx.analysis.activations import Activations, in_parallel
from emopfx.layout import commit

# Of a normal distribution, how many median absolute deviations make a standard deviation.
MAD_TO_DEVIATION = 1.4826


class Direction(NamedTuple):
    """A direction `[width]` at a place."""

    site: Site
    vector: npt.NDArray[np.float32]


def write_projections(path: Path, activations: Activations, directions: Mapping[str, Direction]) -> list[str]:
    """Write a line per sample: its captured tokens, and each token's robust z-score along each direction.

    0 is the median over all tokens of all samples, 1 a standard deviation as the median absolute deviation tells it:
    the first token of a prompt often lies so far off that it would flatten all others. Positive is along the direction.

    Args:
        path: The file to write.
        activations: Where tokens' activations are.
        directions: The directions, by name; without any, nothing is written.

    Returns:
        The names.
    """
    if not directions:
        return []
    values = _along(activations, directions)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for key, record in in_parallel(activations.metadata, activations.keys):
            own = {name: [round(float(z), 2) for z in found[key]] for name, found in values.items()}
            line = {"key": key, "tokens": _texts(record.get("token_texts")), "values": own}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    commit(temporary, path)
    return list(directions)


def _along(activations: Activations, directions: Mapping[str, Direction]) -> dict[str, dict[str, Floats]]:
    """Return, by direction and sample, each token's z-score; the rows of a place are read once for all directions."""
    found: dict[str, dict[str, Floats]] = {name: {} for name in directions}
    for site in dict.fromkeys(direction.site for direction in directions.values()):
        here = {name: direction.vector for name, direction in directions.items() if direction.site == site}
        for key, rows in activations.rows(site, "all"):
            for name, vector in here.items():
                found[name][key] = rows @ vector
    return {name: _standardised(own) for name, own in found.items()}


def _standardised(along: dict[str, Floats]) -> dict[str, Floats]:
    every = np.concatenate([np.zeros(0, np.float32), *along.values()])
    if not len(every):
        return {}
    middle = np.float32(np.median(every))
    deviation = np.float32(MAD_TO_DEVIATION * np.median(np.abs(every - middle)))
    # Where most tokens lie at one place, none is coloured.
    return {key: (values - middle) / deviation if deviation else np.zeros_like(values) for key, values in along.items()}


def _texts(recorded: object) -> list[str]:
    """Return the texts of a sample's captured tokens, none where they were not recorded."""
    return [text for text in recorded if isinstance(text, str)] if isinstance(recorded, list) else []
