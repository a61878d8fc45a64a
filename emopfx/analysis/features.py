"""One vector per sample and place: what probes are given to read."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from emopfx.analysis.activations import Activations, Floats, Positions, Site

Feature = Literal["last_prompt", "mean_generated", "last"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
NEEDED: dict[Feature, Positions] = {"last_prompt": "last_prompt", "mean_generated": "generated", "last": "last"}


def available(activations: Activations) -> dict[Feature, list[str]]:
    """Return for each feature the samples of which the tokens that it needs were captured."""
    return {
        feature: [key for key in activations.keys if activations.count(key, positions)]
        for feature, positions in NEEDED.items()
    }


def read(activations: Activations, site: Site, having: Mapping[Feature, list[str]]) -> dict[Feature, Floats]:
    """Read the features at one site, each sample's by one ranged read that leaves the prompt out.

    Args:
        activations: Where they are.
        site: The layer and hook point.
        having: Each feature's samples (see `available`).

    Returns:
        For each feature `[samples, width]`; NaN for a sample that turned out to be unreadable.
    """
    places = {feature: {key: row for row, key in enumerate(keys)} for feature, keys in having.items()}
    found = {
        feature: np.full((len(keys), activations.width(site)), np.nan, np.float32) for feature, keys in having.items()
    }
    keys = dict.fromkeys(key for keys in having.values() for key in keys)
    for key, rows in activations.rows(site, "answer", keys):
        for feature, place in places.items():
            if key in place:
                found[feature][place[key]] = _reduce(rows, feature, activations.count(key, "generated"))
    return found


def _reduce(rows: Floats, feature: Feature, generated: int) -> Floats:
    if feature == "mean_generated":
        rows = rows[len(rows) - generated :].mean(axis=0, keepdims=True)
    return rows[:1].reshape(-1) if feature == "last_prompt" else rows[-1:].reshape(-1)
