"""What all parts of the analysis have in common."""

# Of every draw: folds, shuffles, resamples, first weights.
SEED = 20260419
BASELINES = ("control", "neutral")


def baselines(variants: list[str]) -> list[str]:
    """Return the variants that others are compared with: control and neutral, the first one if there is neither."""
    return [name for name in BASELINES if name in variants] or variants[:1]


def baseline(variants: list[str]) -> str:
    """Return the one variant that others are compared with where there is room for one comparison."""
    return baselines(variants)[0]
