"""One vector per sample and place: what probes are given to read."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from emopfx.analysis.activation_file import Floats, Positions, Site
from emopfx.analysis.activations import Activations

FeatureName = Literal["last_prompt", "mean_generated", "last"]
FEATURES: tuple[FeatureName, ...] = get_args(FeatureName)
NEEDED: dict[FeatureName, Positions] = {"last_prompt": "last_prompt", "mean_generated": "generated", "last": "last"}


def available(activations: Activations) -> dict[FeatureName, list[str]]:
    """Return for each feature the samples of which the tokens that it needs were captured."""
    return {
        feature: [key for key in activations.keys if activations.count(key, positions)]
        for feature, positions in NEEDED.items()
    }


def read(activations: Activations, site: Site, having: Mapping[FeatureName, list[str]]) -> dict[FeatureName, Floats]:
    """Read the features at one site, each sample's by one ranged read of no more than they need.

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
    positions = [NEEDED[feature] for feature in having]
    for key, rows in activations.rows(site, *positions, keys=keys):
        start = activations.span(key, *positions).start
        for feature, place in places.items():
            if key in place:
                own = activations.span(key, NEEDED[feature])
                found[feature][place[key]] = rows[own.start - start : own.stop - start].mean(axis=0)
    return found
