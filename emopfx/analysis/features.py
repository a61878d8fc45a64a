"""One vector per sample and place: what probes are given to read."""

from collections.abc import Mapping, Sequence
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


def read(
    activations: Activations, sites: Sequence[Site], having: Mapping[FeatureName, list[str]]
) -> dict[Site, dict[FeatureName, Floats]]:
    """Read the features at the sites of one layer, each sample's by one ranged read where they lie close.

    Args:
        activations: Where they are.
        sites: The layer's hook points.
        having: Each feature's samples (see `available`).

    Returns:
        For each site and feature `[samples, width]`; NaN for a sample that turned out to be unreadable.
    """
    places = {feature: {key: row for row, key in enumerate(keys)} for feature, keys in having.items()}
    found = {
        site: {
            feature: np.full((len(keys), activations.width(site)), np.nan, np.float32)
            for feature, keys in having.items()
        }
        for site in sites
    }
    positions = [NEEDED[feature] for feature in having]

    def means(key: str, rows: Floats) -> dict[FeatureName, Floats]:
        start = activations.span(key, *positions).start
        spans = {feature: activations.span(key, NEEDED[feature]) for feature in having if key in places[feature]}
        return {feature: rows[own.start - start : own.stop - start].mean(axis=0) for feature, own in spans.items()}

    keys = dict.fromkeys(key for keys in having.values() for key in keys)
    for key, vectors in activations.reduced(sites, *positions, keys=keys, reduce=means):
        for site, own in vectors.items():
            for feature, vector in own.items():
                found[site][feature][places[feature][key]] = vector
    return found
