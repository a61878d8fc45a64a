"""Interventions: what a request changes in its own rows of the batch, and the bound on what may come of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emopfx_server.engine.capture import position_ranges
from emopfx_server.engine.model import Site
from emopfx_server.schemas import EditKind, EditPositions

LIMIT = 1e15
"""The largest size of a steered activation. Attention multiplies masked values of other requests by zero, and zero
times infinity is not zero: what overflows in one request would reach its neighbours."""


@dataclass(frozen=True, eq=False)
class Vector:
    """The direction or the content that an intervention brings.

    Attributes:
        source: ``inline``, or the file and the tensor it was read from.
        values: Its numbers, ``[width]``, float32.
    """

    source: str
    values: torch.Tensor

    def record(self) -> dict[str, Any]:
        """What the metadata says of it: not its numbers, but their SHA-256 (float32, little endian) and L2 norm."""
        digest = hashlib.sha256(self.values.numpy().astype("<f4").tobytes()).hexdigest()
        return {"source": self.source, "sha256": digest, "norm": float(self.values.double().norm())}


@dataclass(frozen=True, eq=False)
class Edit:
    """An intervention that has been checked against the model.

    Attributes:
        kind: What is done to the rows.
        site: Where.
        positions: To which tokens' rows.
        scale: The factor of the vector, or of the rows themselves.
        vector: What is added or put in place.
        operand: ``scale`` × ``vector`` in the model's data type and on its device.
    """

    kind: EditKind
    site: Site
    positions: EditPositions
    scale: float
    vector: Vector | None = None
    operand: torch.Tensor | None = None

    def apply(self, rows: torch.Tensor) -> None:
        """Change ``rows``, ``[tokens, width]``, in place."""
        match self.kind:
            case "scale":
                rows *= self.scale
            case "zero":
                rows.zero_()
            case "add":
                rows += _given(self.operand)
            case "replace":
                rows.copy_(_given(self.operand))

    def record(self) -> dict[str, Any]:
        """What the metadata says of it."""
        return {
            "kind": self.kind,
            "layer": self.site.layer,
            "hook_point": self.site.hook_point,
            "positions": self.positions,
            "scale": self.scale,
            "vector": self.vector and self.vector.record(),
        }


def _given(operand: torch.Tensor | None) -> torch.Tensor:
    assert operand is not None, "an intervention that adds or replaces has a vector"
    return operand


@dataclass(frozen=True)
class Steered:
    """A request's part of a step's rows, and its edits there.

    Attributes:
        span: Its rows in the packed batch.
        changes: Edits with the rows of the batch that they change, in the request's order.
    """

    span: slice
    changes: list[tuple[Edit, slice]]


class Steering:
    """One request's edits, by the positions that they change."""

    def __init__(self, edits: Sequence[Edit], prompt_tokens: int, max_tokens: int) -> None:
        self._edits = [(edit, position_ranges(edit.positions, prompt_tokens, max_tokens)) for edit in edits]

    def within(self, row: int, position: int, tokens: int) -> Steered | None:
        """The edits in a span of tokens, the first of them at ``row`` in the batch and ``position`` in the request."""
        changes = [
            (edit, slice(row + max(start, position) - position, row + min(stop, position + tokens) - position))
            for edit, ranges in self._edits
            for start, stop in ranges
            if max(start, position) < min(stop, position + tokens)
        ]
        return Steered(slice(row, row + tokens), changes) if changes else None


class Rewrite:
    """What one step rewrites: the edits of all its steered requests.

    A request whose activations pass `LIMIT` is muted: its rows become zero there, so that its neighbours stay whole,
    and `overflowed` tells that it must fail.

    Args:
        steered: The steered requests of the step.
        device: The model's device.
    """

    def __init__(self, steered: Sequence[Steered], device: torch.device) -> None:
        self._steered = steered
        self._overflowed = torch.zeros(len(steered), dtype=torch.bool, device=device)
        self._sites = {edit.site for one in steered for edit, _ in one.changes}
        self._first_layer = min(site.layer for site in self._sites)

    def sites(self, layer_outputs: Sequence[Site]) -> set[Site]:
        """Where rows are rewritten: at the edits, and at every layer's output behind them, which is kept in bounds."""
        return self._sites | {site for site in layer_outputs if site.layer >= self._first_layer}

    def apply(self, site: Site, value: torch.Tensor) -> torch.Tensor:
        """A copy of a site's ``value``, ``[1, tokens, width]`` or parted by heads, with the edits made.

        It is a copy, because what reads the same memory (the residual stream beside a norm, a sibling projection)
        must go on to see it as it was.
        """
        changed = value.clone().flatten(2)
        for index, one in enumerate(self._steered):
            for edit, rows in one.changes:
                if edit.site == site:
                    edit.apply(changed[0, rows])
            own = changed[0, one.span]
            overflowed = (own.abs() <= LIMIT).all().logical_not()  # NaN is not <= anything
            own.masked_fill_(overflowed, 0)
            self._overflowed[index] |= overflowed
        return changed.view(value.shape)

    def overflowed(self) -> list[bool]:
        """For each steered request, whether its activations passed `LIMIT`."""
        found: list[bool] = self._overflowed.tolist()
        return found
