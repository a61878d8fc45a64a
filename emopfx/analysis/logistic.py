"""Many logistic regressions on the same rows at once: batched L-BFGS, exact up to its tolerance."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

# Held-out accuracy no longer moves at a mean loss this flat.
TOLERANCE = 5e-4
MAX_STEPS = 200
HISTORY = 8
HALVINGS = 20
DIRECTIONS = 64


@dataclass(frozen=True)
class Problems:
    """Which rows train which problem, and on what labels.

    Weights stand in columns: a multinomial problem has one a class, a binary one has one. A column is a row of the
    tensors here, since narrow matrix products are fast only this way round.

    Attributes:
        masks: The distinct sets of training rows, `[masks, n]`, 0 or 1.
        mask_of: Each problem's set of training rows, `[problems]`; the multinomial ones come first.
        multinomial: Labels from 0 to `classes` - 1 of the multinomial problems, `[multinomial, n]`.
        binary: Labels, 0 or 1, of the others, `[binary, n]`.
        classes: How many classes each multinomial problem has.
        c: The inverse of the penalty's strength: each problem minimises c · Σ loss + ½ |weights|².
    """

    masks: Tensor
    mask_of: Tensor
    multinomial: Tensor
    binary: Tensor
    classes: int
    c: float

    def split(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Split `[sites, columns, …]`: multinomial, `[sites, problems, classes, …]`, and the others."""
        count = len(self.multinomial)
        several, single = columns[:, : count * self.classes], columns[:, count * self.classes :]
        return several.reshape(len(columns), count, self.classes, *columns.shape[2:]), single

    def sums(self, columns: Tensor) -> Tensor:
        """Sum over each problem's columns, `[sites, columns]` to `[sites, problems]`."""
        several, single = self.split(columns)
        return torch.cat([several.sum(2), single], 1)

    def spread(self, problems: Tensor) -> Tensor:
        """Repeat each problem's value for its columns, `[…, problems]` to `[…, columns, 1]`."""
        count = len(self.multinomial)
        several = problems[..., :count].repeat_interleave(self.classes, -1)
        return torch.cat([several, problems[..., count:]], -1).unsqueeze(-1)


@dataclass(frozen=True)
class Fits:
    """What was found: logits are `weights · x + bias`, for rows as they were given.

    Attributes:
        weights: `[sites, columns, width]`.
        bias: `[sites, columns]`.
        logits: Of all rows, also those that trained nothing, `[sites, columns, n]`.
    """

    weights: Tensor
    bias: Tensor
    logits: Tensor


def fit(rows: Tensor, problems: Problems) -> Fits:
    """Fit all problems at all sites.

    Features are standardised by each problem's training rows; the bias is not penalised. L-BFGS (Liu & Nocedal 1989)
    goes in lockstep for all problems, so that a step is two matrix products with all columns; a step is as long as
    Newton's along its direction, halved until the objective falls enough.

    Args:
        rows: Features, `[sites, n, width]`.
        problems: What to fit to them.
    """
    data, loss = _Standardised(rows, problems), _Loss(rows, problems)
    sites, n, width = rows.shape
    parameters = rows.new_zeros(sites, len(data.columns), width + 1)
    logits = rows.new_zeros(sites, len(data.columns), n)
    value, gradient = loss.value(logits), data.gradient(loss.residuals(logits))
    steps: deque[tuple[Tensor, Tensor]] = deque(maxlen=HISTORY)
    principal = _Principal(rows, float(loss.ridge.mean()))
    for _ in range(MAX_STEPS):
        # What has arrived stays: products of smaller gradients would be lost in rounding.
        open_ = problems.sums((gradient.abs().amax(-1) > TOLERANCE).to(rows)) > 0
        if not open_.any():
            break
        direction = -_inverse_hessian(gradient, steps, problems, principal) * problems.spread(open_.to(rows))
        change = data.logits(direction)
        penalty = loss.penalty(parameters, direction)
        slope = _dot(gradient, direction, problems)
        length = -slope / (loss.curvature(logits, change) + 2 * penalty[2]).clamp_min(1e-30)
        for attempt in range(HALVINGS + 1):
            reached = logits + problems.spread(length) * change
            found = loss.value(reached) + penalty[0] + length * penalty[1] + length**2 * penalty[2]
            # The last term is what float32 can tell apart.
            worse = found > value + 1e-4 * length * slope + 1e-6 * value
            if not worse.any():
                break
            length = torch.where(worse, length / 2 if attempt < HALVINGS - 1 else 0, length)
        moved = problems.spread(length) * direction
        parameters, logits, value = parameters + moved, reached, found
        new = data.gradient(loss.residuals(logits)) + loss.penalty_gradient(parameters)
        steps.append((moved, new - gradient))
        gradient = new
    return Fits(*data.unscaled(parameters), logits)


def _inverse_hessian(
    gradient: Tensor, steps: deque[tuple[Tensor, Tensor]], problems: Problems, principal: "_Principal"
) -> Tensor:
    """Return the inverse Hessian times the gradient, as the last steps tell it (two-loop recursion)."""
    result = gradient
    factors = []
    for moved, turned in reversed(steps):
        curvature = _dot(moved, turned, problems).clamp_min(1e-30)
        factor = _dot(moved, result, problems) / curvature
        result = result - problems.spread(factor) * turned
        factors.append((curvature, factor))
    result = principal.shorten(result)
    if steps:
        turned = steps[-1][1]
        size = _dot(turned, principal.shorten(turned), problems).clamp_min(1e-30)
        result = problems.spread(factors[0][0] / size) * result
    for (moved, turned), (curvature, factor) in zip(steps, reversed(factors), strict=True):
        back = _dot(turned, result, problems) / curvature
        result = result + problems.spread(factor - back) * moved
    return result


def _dot(left: Tensor, right: Tensor, problems: Problems) -> Tensor:
    """Return each problem's scalar product, `[sites, problems]`."""
    return problems.sums(torch.linalg.vecdot(left, right))


class _Standardised:
    """Rows standardised for each column by the mean and deviation of its training rows.

    The rows stay as they are: the scaling is put into the weights.
    """

    def __init__(self, rows: Tensor, problems: Problems) -> None:
        self.rows = rows
        share = (problems.masks / problems.masks.sum(1, keepdim=True)).to(rows)
        self.columns = problems.spread(problems.mask_of).squeeze(-1)
        mean = share @ rows
        variance = share @ rows.square() - mean.square()
        # A feature that doesn't vary says nothing: its weight is zero.
        varies = variance > 1e-6 * mean.square() + 1e-12
        scale = torch.where(varies, variance.clamp_min(1e-12).rsqrt(), 0)
        self.mean, self.scale = mean[:, self.columns], scale[:, self.columns]

    def unscaled(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and bias for the rows as they are; the last parameter of each column is its bias."""
        weights = parameters[..., :-1] * self.scale
        return weights, parameters[..., -1] - torch.linalg.vecdot(weights, self.mean)

    def logits(self, parameters: Tensor) -> Tensor:
        """Return the logits, `[sites, columns, n]`."""
        weights, bias = self.unscaled(parameters)
        return weights @ self.rows.mT + bias.unsqueeze(-1)

    def gradient(self, residuals: Tensor) -> Tensor:
        """Return the gradient by the parameters, given that by the logits."""
        total = residuals.sum(-1, keepdim=True)
        return torch.cat([(residuals @ self.rows - total * self.mean) * self.scale, total], -1)


class _Principal:
    """The directions in which standardised rows vary most, and how much more than in the others.

    Along them the loss is the more curved, so L-BFGS starts from a Hessian that has them. Found by a randomised
    singular value decomposition (Halko, Martinsson & Tropp 2011, SIAM Rev. 53:217-288).
    """

    def __init__(self, rows: Tensor, ridge: float) -> None:
        mean = rows.mean(1, keepdim=True)
        scale = rows.std(1, keepdim=True, correction=0)
        scale = torch.where(scale > 1e-3 * mean.abs() + 1e-6, 1 / scale, 0)
        n, width = rows.shape[1:]
        count = min(DIRECTIONS, n, width)

        def along(basis: Tensor) -> Tensor:
            scaled = basis * scale
            return scaled @ rows.mT - scaled @ mean.mT

        def back(values: Tensor) -> Tensor:
            return (values @ rows - values.sum(-1, keepdim=True) * mean) * scale

        draw = torch.Generator().manual_seed(0)
        basis = torch.randn(len(rows), count, width, generator=draw).to(rows)
        for _ in range(2):
            basis = torch.linalg.qr(back(along(basis)).mT).Q.mT
        values = along(basis)
        spread, turn = torch.linalg.eigh(values @ values.mT / n)
        self.basis = turn.mT @ basis
        # At even odds a logistic loss is a quarter as curved as the rows vary.
        rest = (width - spread.sum(-1, keepdim=True)).clamp_min(0) / max(1, min(n, width) - count)
        self.factor = ((rest / 4 + ridge) / (spread / 4 + ridge)).clamp_max(1).unsqueeze(1)

    def shorten(self, parameters: Tensor) -> Tensor:
        """Divide parameters by the Hessian's curvature, along the directions that are known."""
        weights = parameters[..., :-1]
        inside = weights @ self.basis.mT
        return torch.cat([weights + (inside * (self.factor - 1)) @ self.basis, parameters[..., -1:]], -1)


class _Loss:
    """The mean loss of each problem's training rows, with its penalty and their derivatives."""

    def __init__(self, rows: Tensor, problems: Problems) -> None:
        count = len(problems.multinomial)
        weight = (problems.masks / problems.masks.sum(1, keepdim=True)).to(rows)[problems.mask_of]
        self.problems = problems
        self.weight_several, self.weight_single = weight[:count], weight[count:]
        self.targets = one_hot(problems.multinomial, problems.classes).to(rows).movedim(-1, 1)
        self.signs = (2 * problems.binary - 1).to(rows)
        self.ridge = (1 / (problems.c * problems.masks.sum(1)))[problems.mask_of].to(rows)

    def value(self, logits: Tensor) -> Tensor:
        """Return each problem's loss, `[sites, problems]`."""
        several, single = self.problems.split(logits)
        losses = several.logsumexp(2) - (several * self.targets).sum(2)
        first = torch.linalg.vecdot(losses, self.weight_several)
        return torch.cat([first, torch.linalg.vecdot(softplus(-self.signs * single), self.weight_single)], 1)

    def residuals(self, logits: Tensor) -> Tensor:
        """Return the loss's gradient by the logits."""
        several, single = self.problems.split(logits)
        first = (several.softmax(2) - self.targets) * self.weight_several.unsqueeze(1)
        second = -self.signs * torch.sigmoid(-self.signs * single) * self.weight_single
        return torch.cat([first.flatten(1, 2), second], 1)

    def curvature(self, logits: Tensor, change: Tensor) -> Tensor:
        """Return the loss's second derivative along a change of the logits, `[sites, problems]`."""
        several, single = self.problems.split(logits)
        change_several, change_single = self.problems.split(change)
        shares, p = several.softmax(2), single.sigmoid()
        variance = (shares * change_several.square()).sum(2) - (shares * change_several).sum(2).square()
        first = torch.linalg.vecdot(variance, self.weight_several)
        return torch.cat([first, torch.linalg.vecdot(p * (1 - p) * change_single.square(), self.weight_single)], 1)

    def penalty(self, parameters: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the penalty along a direction as a polynomial of the length: constant, linear and square term."""
        here, there = parameters[..., :-1], direction[..., :-1]
        pairs = ((here, here, 0.5), (here, there, 1.0), (there, there, 0.5))
        constant, linear, square = (factor * self.ridge * _dot(a, b, self.problems) for a, b, factor in pairs)
        return constant, linear, square

    def penalty_gradient(self, parameters: Tensor) -> Tensor:
        """Return the penalty's gradient; the bias has none."""
        gradient = parameters * self.problems.spread(self.ridge)
        gradient[..., -1] = 0
        return gradient
