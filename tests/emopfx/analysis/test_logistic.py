"""Logistic regressions where rows are fewer than features, or lie far apart: what arrives must be a fit."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from emopfx.analysis.curvature import Curvature, Features
from emopfx.analysis.logistic import Fits, Problems, fit


def fitted(rows: torch.Tensor, labels: torch.Tensor, c: float) -> tuple[Features, Fits]:
    """Fit to all rows, and to four fifths of them."""
    features, folds = Features.of(rows.clone()), torch.arange(len(rows)) // 2 % 5
    masks = torch.stack([torch.ones(len(rows), dtype=torch.bool), *(folds != fold for fold in range(5))])
    problems = Problems(masks.float(), labels.expand(6, -1), 2, c)
    return features, fit(features, problems, Curvature(features, c))


@pytest.mark.parametrize(
    ("n", "width", "noise", "c"), [(200, 4096, 0.3, 1.0), (500, 4096, 0.5, 1.0), (60, 300, 2, 0.01)]
)
def test_fewer_rows_than_features_are_fitted_as_scikit_learn_does(n: int, width: int, noise: float, c: float) -> None:
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 2
    rows = torch.randn(2, width, generator=draw)[labels] + noise * torch.randn(n, width, generator=draw)
    features, fits = fitted(rows, labels, c)
    assert fits.logits.isfinite().all()
    assert ((fits.logits[:, 0] > 0) == (labels == 1)).float().mean() > 0.95
    model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(features.rows.double().numpy(), labels.numpy())
    expected = model.decision_function(features.rows.double().numpy())
    # Where classes lie far apart, it ends where the loss is flat, a little before the minimum.
    assert np.corrcoef(fits.logits[0, 0].numpy(), expected)[0, 1] > 0.999


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("kind", ["two values", "one outlier", "one value twice"])
def test_odd_features_end_in_numbers(kind: str, c: float) -> None:
    draw = torch.Generator().manual_seed(2)
    labels = torch.arange(300) % 2
    if kind == "two values":
        rows = torch.randn(2, 1024, generator=draw)[(torch.arange(300) < 50).long()]
    else:
        rows = torch.randn(300, 1024, generator=draw)
        if kind == "one outlier":
            rows[0] *= 1e4
        else:
            rows[:, 1] = rows[:, 0]
            rows[:, 2] = 5
    _, fits = fitted(rows, labels, c)
    assert fits.logits.isfinite().all()
    assert fits.weights.isfinite().all()
