"""Standardised features, and how they vary together: what all regressions on the same rows share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from emopfx.analysis.tasks import Ints

GRAM_BLOCK = 512
MOMENTS_BLOCK = 128


@dataclass(frozen=True)
class Features:
    """Rows of mean 0 and deviation 1 as a whole.

    Attributes:
        rows: `[n, width]`.
        centre: The means of the rows as they were given, `[width]`.
        scale: What the rows' differences from them were multiplied by, `[width]`.
    """

    rows: Tensor
    centre: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Features":
        """Standardise rows, `[n, width]`.

        The mean is taken twice: of a feature far from zero, float32 finds it only roughly the first time.
        """
        centre = rows.mean(0)
        moved = rows - centre
        rest = moved.mean(0)
        moved -= rest
        deviation = moments(moved, moved.new_full((1, len(rows)), 1 / len(rows)))[1][0].sqrt()
        # A feature that varies by no more than float32 rounds says nothing: its weight is zero.
        scale = torch.where(deviation > 1e-7 * centre.abs(), 1 / deviation, 0)
        return cls(moved.mul_(scale), centre + rest, scale)

    def part(self, which: Ints) -> "Features":
        """Return some of the rows, by their indices; they need not be of mean 0 and deviation 1 by themselves."""
        if len(which) == len(self.rows):  # indices are in order, and none comes twice
            return self
        indices = torch.from_numpy(which).to(self.rows.device)
        return Features(self.rows[indices], self.centre, self.scale)

    def unscaled(self, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights, `[..., width]`, and bias, `[...]`, for the rows as they were given."""
        weights = weights * self.scale
        return weights, bias - weights @ self.centre


def moments(rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted means of rows, `[n, width]`, and of their squares, `[shares, width]`.

    Args:
        rows: The rows.
        shares: Weights that add up to 1, `[shares, n]`.
    """
    squares = rows.new_zeros(len(shares), rows.shape[1])
    for start in range(0, len(rows), MOMENTS_BLOCK):
        block = slice(start, start + MOMENTS_BLOCK)
        squares += shares[:, block] @ rows[block].square()  # which stay in the processor's cache
    return shares @ rows, squares


class Curvature:
    """How rows vary together, by which L-BFGS takes its first guess at how curved the losses are.

    At even odds a logistic loss is as curved as the rows vary, but for a factor: the bound of Böhning and Lindsay 1988
    (Ann. Inst. Stat. Math. 40:641-663). With it, a few steps arrive. Problems on parts of the rows, or with other
    penalties, share it: a guess decides how many steps there are, and only the gradient where they end.

    Args:
        features: All rows that problems are made of.
        c: The inverse of the penalty's strength.
    """

    def __init__(self, features: Features, c: float) -> None:
        rows = features.rows
        n, width = rows.shape
        # More than rounding makes of the rows' products, so that these stay positive definite.
        self._ridge = max(8 / (c * n), 1e-5 * width)
        # With fewer rows than features, the inverse is that of the smaller matrix (Woodbury's identity). It is a
        # difference of two that are nearly alike, of which float32 would leave nothing.
        self._rows = rows.double() if n < width else None
        if self._rows is None:
            products, ridge = _gram(rows.mT) / n, self._ridge
        else:
            products, ridge = self._rows @ self._rows.mT, n * self._ridge
        products.diagonal().add_(ridge)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(products))

    def solve(self, parameters: Tensor) -> Tensor:
        """Divide parameters, `[problems, columns, width + 1]`, by the curvature; the last is the bias."""
        weights = parameters[..., :-1].flatten(0, 1)
        if self._rows is None:
            weights = weights @ self._inverse
        else:
            exact = weights.double()
            exact = (exact - exact @ self._rows.mT @ self._inverse @ self._rows) / self._ridge
            weights = exact.to(weights)
        return torch.cat([weights.reshape(*parameters.shape[:2], -1), parameters[..., -1:]], -1)


def _gram(rows: Tensor) -> Tensor:
    """Return the scalar products of all pairs of rows, `[n, n]`; each pair of blocks is multiplied once."""
    products = rows.new_empty(len(rows), len(rows))
    with _rough_products():
        for start in range(0, len(rows), GRAM_BLOCK):
            stop = start + GRAM_BLOCK
            block = rows[start:stop] @ rows[start:].mT
            products[start:stop, start:], products[start:, start:stop] = block, block.mT
    return products


@contextmanager
def _rough_products() -> Iterator[None]:
    """Let matrix products round their factors, where the processor is several times faster then (AMX, tensor cores)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
