"""Many logistic regressions on the same rows at once: batched L-BFGS, exact up to its tolerance."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from emopfx.analysis.curvature import Curvature, Features, moments

# Held-out accuracy no longer moves at a mean loss this flat.
TOLERANCE = 1e-4
MAX_STEPS = 200
HISTORY = 8
HALVINGS = 20

Steps = deque[tuple[Tensor, Tensor, Tensor]]
"""Of the last steps: how the parameters moved, how the gradient turned, and that divided by the curvature."""


@dataclass(frozen=True)
class Problems:
    """Which rows train which problem, and on what labels.

    Weights stand in columns: one tells two classes apart, more classes have one each. A column is a row of the tensors
    here, since narrow matrix products are fast only this way round.

    Attributes:
        masks: Each problem's training rows, `[problems, n]`, 0 or 1.
        labels: Each problem's labels from 0 to `classes` - 1, `[problems, n]`.
        classes: How many classes each problem has.
        c: The inverse of the penalty's strength: each problem minimises c · Σ loss + ½ |weights|².
    """

    masks: Tensor
    labels: Tensor
    classes: int
    c: float

    @property
    def columns(self) -> int:
        """How many columns of weights a problem has."""
        return self.classes if self.classes > 2 else 1


@dataclass(frozen=True)
class Fits:
    """What was found: logits are `weights · x + bias`, for rows as they were given.

    Attributes:
        weights: `[problems, columns, width]`.
        bias: `[problems, columns]`.
        logits: Of all rows, also those that trained nothing, `[problems, columns, n]`.
    """

    weights: Tensor
    bias: Tensor
    logits: Tensor


def fit(features: Features, problems: Problems, curvature: Curvature) -> Fits:
    """Fit all problems.

    Features are standardised by each problem's training rows; the bias is not penalised. L-BFGS (Liu & Nocedal 1989)
    goes in lockstep for all problems, so that a step is two matrix products with all columns; a step is as long as
    Newton's along its direction, halved until the objective falls enough. A problem that has arrived leaves the others.

    Args:
        features: The rows.
        problems: What to fit to them.
        curvature: Of these rows, or of those they are a part of.
    """
    data, loss = _Standardised.of(features.rows, problems), _Loss.of(features.rows, problems)
    found, logits = _minimise(data, loss, curvature, problems.columns)
    return Fits(*features.unscaled(*data.unscaled(found)), logits)


def _minimise(data: "_Standardised", loss: "_Loss", curvature: Curvature, columns: int) -> tuple[Tensor, Tensor]:
    """Return each problem's parameters, `[problems, columns, width + 1]`, the last being the bias, and its logits."""
    rows, count = data.rows, len(loss.weight)
    place = torch.arange(count, device=rows.device)
    parameters, logits = rows.new_zeros(count, columns, rows.shape[1] + 1), rows.new_zeros(count, columns, len(rows))
    arrived = parameters.clone(), logits.clone()
    value, gradient = loss.value(logits), data.gradient(loss.residuals(logits))
    stuck = torch.zeros_like(value, dtype=torch.bool)
    steps: Steps = deque(maxlen=HISTORY)
    for _ in range(MAX_STEPS):
        going = (gradient.abs().amax((1, 2)) > TOLERANCE) & ~stuck
        if not going.all():
            arrived[0][place], arrived[1][place] = parameters, logits
            if not going.any():
                return arrived
            data, loss, place = data.kept(going), loss.kept(going), place[going]
            parameters, logits, value, gradient = (t[going] for t in (parameters, logits, value, gradient))
            steps = deque(((a[going], b[going], c[going]) for a, b, c in steps), maxlen=HISTORY)
        solved = curvature.solve(gradient)
        if steps:
            moved, turned, before = steps.pop()
            steps.append((moved, turned, solved - before))
        direction = -_inverse_hessian(gradient, solved, steps)
        slope = _dot(gradient, direction)
        # Where rounding has bent the direction up, the way down is the gradient's.
        falls = slope < 0
        direction = torch.where(_spread(falls), direction, -gradient)
        slope = torch.where(falls, slope, -_dot(gradient, gradient))
        change = data.logits(direction)
        penalty = loss.penalty(parameters, direction)
        length = -slope / (loss.curvature(logits, change) + 2 * penalty[2]).clamp_min(1e-30)
        for attempt in range(HALVINGS + 1):
            reached = logits + _spread(length) * change
            found = loss.value(reached) + penalty[0] + length * penalty[1] + length**2 * penalty[2]
            # The last term is what float32 can tell apart.
            worse = ~(found <= value + 1e-4 * length * slope + 1e-6 * value)
            if not worse.any():
                break
            length = torch.where(worse, length / 2 if attempt < HALVINGS - 1 else 0, length)
        moved = _spread(length) * direction
        parameters, logits, value, stuck = parameters + moved, reached, found, length == 0
        new = data.gradient(loss.residuals(logits)) + loss.penalty_gradient(parameters)
        steps.append((moved, new - gradient, solved))  # until the new gradient is divided too
        gradient = new
    arrived[0][place], arrived[1][place] = parameters, logits
    return arrived


def _inverse_hessian(gradient: Tensor, solved: Tensor, steps: Steps) -> Tensor:
    """Return the inverse Hessian times the gradient, as the last steps tell it (two-loop recursion).

    Division by the curvature is linear, so that it is done once a step, and here only summed up: `solved` is the
    gradient's.
    """
    factors = []
    for moved, turned, turned_solved in reversed(steps):
        bend = _dot(moved, turned).clamp_min(1e-30)
        factor = _dot(moved, gradient) / bend
        gradient, solved = gradient - _spread(factor) * turned, solved - _spread(factor) * turned_solved
        factors.append((bend, factor))
    if steps:
        _, turned, turned_solved = steps[-1]
        expected = _dot(turned, turned_solved)
        solved = _spread(torch.where(expected > 0, factors[0][0] / expected, 1)) * solved
    for (moved, turned, _), (bend, factor) in zip(steps, reversed(factors), strict=True):
        back = _dot(turned, solved) / bend
        solved = solved + _spread(factor - back) * moved
    return solved


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return each problem's scalar product, `[problems]`."""
    return _inner(left.flatten(1), right.flatten(1))


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Return scalar products along the last dimension."""
    found: Tensor = torch.linalg.vecdot(left, right)
    return found


def _spread(values: Tensor) -> Tensor:
    """Return a value per problem so that it multiplies the problem's columns."""
    return values[:, None, None]


@dataclass(frozen=True)
class _Standardised:
    """Rows standardised for each problem by the mean and deviation of its training rows, `[problems, 1, width]`.

    The rows stay as they are: the scaling is put into the weights.
    """

    rows: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Tensor, problems: Problems) -> "_Standardised":
        share = (problems.masks / problems.masks.sum(1, keepdim=True)).to(rows)
        mean, square = moments(rows, share)
        variance = square - mean.square()
        # A feature that doesn't vary among the training rows says nothing: its weight is zero.
        varies = variance > 1e-6 * mean.square() + 1e-12
        scale = torch.where(varies, variance.clamp_min(1e-12).rsqrt(), 0)
        return cls(rows, mean.unsqueeze(1), scale.unsqueeze(1))

    def kept(self, which: Tensor) -> "_Standardised":
        """Return it for some of the problems."""
        return _Standardised(self.rows, self.mean[which], self.scale[which])

    def unscaled(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and bias for the rows as they are."""
        weights = parameters[..., :-1] * self.scale
        return weights, parameters[..., -1] - _inner(weights, self.mean)

    def logits(self, parameters: Tensor) -> Tensor:
        """Return the logits, `[problems, columns, n]`."""
        weights, bias = self.unscaled(parameters)
        products = (self.rows @ weights.flatten(0, 1).mT).mT  # this way round the faster
        return products.reshape(*bias.shape, -1) + bias.unsqueeze(-1)

    def gradient(self, residuals: Tensor) -> Tensor:
        """Return the gradient by the parameters, given that by the logits."""
        total = residuals.sum(-1, keepdim=True)
        products = (residuals.flatten(0, 1) @ self.rows).reshape(*total.shape[:2], -1)
        return torch.cat([(products - total * self.mean) * self.scale, total], -1)


@dataclass(frozen=True)
class _Loss:
    """The mean loss of each problem's training rows, with its penalty and their derivatives.

    Two classes have one logit, that of the second against the first, whose own is always 0.
    """

    weight: Tensor
    targets: Tensor
    ridge: Tensor

    @classmethod
    def of(cls, rows: Tensor, problems: Problems) -> "_Loss":
        size = problems.masks.sum(1)
        targets = one_hot(problems.labels, problems.classes).to(rows).movedim(-1, 1)
        return cls((problems.masks / size[:, None]).to(rows), targets, (1 / (problems.c * size)).to(rows))

    def kept(self, which: Tensor) -> "_Loss":
        """Return it for some of the problems."""
        return _Loss(self.weight[which], self.targets[which], self.ridge[which])

    def _all(self, logits: Tensor) -> Tensor:
        """Return the logits of all classes, given those of all columns."""
        return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)

    def value(self, logits: Tensor) -> Tensor:
        """Return each problem's loss, `[problems]`."""
        logits = self._all(logits)
        return _inner(logits.logsumexp(1) - (logits * self.targets).sum(1), self.weight)

    def residuals(self, logits: Tensor) -> Tensor:
        """Return the loss's gradient by the logits."""
        residuals = (self._all(logits).softmax(1) - self.targets) * self.weight.unsqueeze(1)
        return residuals[:, -logits.shape[1] :]

    def curvature(self, logits: Tensor, change: Tensor) -> Tensor:
        """Return the loss's second derivative along a change of the logits, `[problems]`."""
        shares, change = self._all(logits).softmax(1), self._all(change)
        variance = (shares * change.square()).sum(1) - (shares * change).sum(1).square()
        return _inner(variance, self.weight)

    def penalty(self, parameters: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the penalty along a direction as a polynomial of the length: constant, linear and square term."""
        here, there = parameters[..., :-1], direction[..., :-1]
        pairs = ((here, here, 0.5), (here, there, 1.0), (there, there, 0.5))
        constant, linear, square = (factor * self.ridge * _dot(a, b) for a, b, factor in pairs)
        return constant, linear, square

    def penalty_gradient(self, parameters: Tensor) -> Tensor:
        """Return the penalty's gradient; the bias has none."""
        gradient = parameters * _spread(self.ridge)
        gradient[..., -1] = 0
        return gradient
