"""What a request captures, and the memory its rows stand in until they are written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from emopfx_server.engine.model import Site
from emopfx_server.schemas import Positions

Slab = dict[int, torch.Tensor]
"""Rows of many sites: for each width a tensor ``[sites of that width, rows, width]``."""

_ENDLESS = 1 << 62
_RANGE = re.compile(r"([0-9]{0,18}):([0-9]{0,18})")


class Layout:
    """Sites in execution order, grouped by width, so that a copy of all of them is one per width.

    Layouts are made by `layout_of`, which as a rule gives the same object for the same sites: a copy between slabs of
    one layout is a plain one.
    """

    def __init__(self, sites: tuple[Site, ...]) -> None:
        self.sites = sites
        self._places: dict[Site, tuple[int, int]] = {}
        self._counts: dict[int, int] = {}
        for site in sites:
            index = self._counts.get(site.width, 0)
            self._places[site] = (site.width, index)
            self._counts[site.width] = index + 1

    def row_bytes(self, dtype: torch.dtype) -> int:
        """The size of one token's rows, in bytes."""
        return sum(site.width for site in self.sites) * dtype.itemsize

    def allocate(self, rows: int, dtype: torch.dtype, device: torch.device | str) -> Slab:
        """An uninitialised slab with room for ``rows`` rows of every site."""
        return {
            width: torch.empty(count, rows, width, dtype=dtype, device=device) for width, count in self._counts.items()
        }

    def view(self, slab: Slab, site: Site) -> torch.Tensor:
        """One site's rows in a slab of this layout, ``[rows, width]``."""
        width, index = self._places[site]
        return slab[width][index]

    def indices_in(self, other: "Layout") -> dict[int, list[int]]:
        """For each width, where this layout's sites stand in a slab of ``other``, which holds them all."""
        found: dict[int, list[int]] = {width: [] for width in self._counts}
        for site in self.sites:
            found[site.width].append(other._places[site][1])
        return found


@lru_cache(maxsize=256)
def layout_of(sites: frozenset[Site]) -> Layout:
    """The layout that holds these sites."""
    return Layout(tuple(sorted(sites, key=lambda site: site.order)))


@lru_cache(maxsize=256)
def union_of(layouts: frozenset[Layout]) -> Layout:
    """The layout that holds every site of ``layouts``."""
    return layout_of(frozenset(site for layout in layouts for site in layout.sites))


@lru_cache(maxsize=256)
def _indices(layout: Layout, other: Layout) -> dict[int, list[int]]:
    return layout.indices_in(other)


@dataclass(frozen=True)
class CaptureSpec:
    """What to capture of one request, checked against the model.

    Attributes:
        layout: The sites.
        dtype: The data type that rows are stored in.
        positions: Which tokens' rows are kept.
    """

    layout: Layout
    dtype: torch.dtype
    positions: Positions

    def capacity(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most rows that a request of this size can keep."""
        if self.positions == "last":
            return 1
        return sum(stop - start for start, stop in position_ranges(self.positions, prompt_tokens, max_tokens))

    def bytes(self, prompt_tokens: int, max_tokens: int) -> int:
        """The most memory that a request of this size can need."""
        return self.capacity(prompt_tokens, max_tokens) * self.layout.row_bytes(self.dtype)


@dataclass(frozen=True)
class Reading:
    """What a step reads for all of its requests.

    Attributes:
        layout: The sites.
        dtype: The data type that their rows are read into.
    """

    layout: Layout
    dtype: torch.dtype

    @classmethod
    def of(cls, specs: Sequence[CaptureSpec], dtype: torch.dtype) -> "Reading":
        """What is read for these requests, at least one, from a model of data type ``dtype``.

        A smaller type that all of them store is read into at once: the fewer bytes are copied, the sooner they are.
        """
        stored = {spec.dtype for spec in specs}
        common = stored.pop() if len(stored) == 1 else dtype
        layout = union_of(frozenset(spec.layout for spec in specs))
        return cls(layout, common if common.itemsize < dtype.itemsize else dtype)


def position_ranges(positions: Positions, prompt_tokens: int, max_tokens: int) -> list[tuple[int, int]]:
    """The half-open ranges of token positions that are meant, in order and apart from each other."""
    total = prompt_tokens + max_tokens - 1  # the last generated token never passes through the model
    if isinstance(positions, list):
        return _merge([parse_range(text) for text in positions], total)
    return {
        "all": [(0, total)],
        "prompt": [(0, prompt_tokens)],
        "generated": [(prompt_tokens, total)],
        "last_prompt": [(prompt_tokens - 1, prompt_tokens)],
        "last": [(0, total)],
    }[positions]


def parse_range(text: str) -> tuple[int, int]:
    """Read ``start:stop``, a half-open range of token positions; either side may be left out.

    Raises:
        ValueError: When the text is anything else.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r:.40} is not a range of positions such as '0:16' or '8:'")
    return int(match[1] or 0), int(match[2] or _ENDLESS)


def _merge(ranges: list[tuple[int, int]], total: int) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted((start, min(stop, total)) for start, stop in ranges):
        if start >= stop:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


class Capture:
    """One request's captured rows, in host memory.

    Room for the longest possible answer is set aside at once, so that a running request never waits for memory;
    pages that are never written to cost nothing.

    Args:
        spec: What is captured.
        prompt_tokens: The prompt's length.
        max_tokens: The most tokens the answer may have.

    Attributes:
        given_up: Whether nobody waits for its rows any more.
    """

    def __init__(self, spec: CaptureSpec, prompt_tokens: int, max_tokens: int) -> None:
        self.spec = spec
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self._ranges = position_ranges(spec.positions, prompt_tokens, max_tokens)
        self._only_last = spec.positions == "last"
        self._buffer = spec.layout.allocate(spec.capacity(prompt_tokens, max_tokens), spec.dtype, "cpu")
        self._seen = 0
        self.given_up = False

    @property
    def rows(self) -> int:
        """How many rows are held."""
        return len(self.positions)

    def wants(self, position: int, tokens: int) -> bool:
        """Whether any of ``tokens`` tokens, the first at ``position``, is to be kept."""
        return any(True for _ in self._kept(position, tokens))

    def take(self, slab: Slab, layout: Layout, rows: Sequence[int], position: int, token_ids: Sequence[int]) -> None:
        """Copy this request's rows out of a slab. From a GPU they come by way of pinned memory.

        Args:
            slab: The slab.
            layout: What the slab holds; at least this request's sites.
            rows: Which of its rows are this request's, in the sequence's order.
            position: The position of the first one's token in the sequence.
            token_ids: Their tokens.
        """
        for start, stop in self._kept(position, len(token_ids)):
            if self._only_last:
                self.token_ids.clear()
                self.positions.clear()
            offset = start - position
            self._copy(slab, layout, rows[offset : stop - position])
            self.token_ids.extend(token_ids[offset : stop - position])
            self.positions.extend(range(start, stop))
        self._seen = max(self._seen, position + len(token_ids))

    def _kept(self, position: int, tokens: int) -> list[tuple[int, int]]:
        """The ranges of positions to keep out of a span.

        A request that lost its place in the key-value cache is prefilled again; its rows are those of the first pass,
        which chose its tokens.
        """
        first, last = max(position, self._seen), position + tokens
        if self._only_last:
            first = max(first, last - 1)
        clipped = ((max(start, first), min(stop, last)) for start, stop in self._ranges)
        return [(start, stop) for start, stop in clipped if start < stop]

    def _copy(self, slab: Slab, layout: Layout, rows: Sequence[int]) -> None:
        filled = slice(self.rows, self.rows + len(rows))
        together = rows[-1] - rows[0] + 1 == len(rows)  # and then they need not be gathered
        chosen = slice(rows[0], rows[-1] + 1) if together else list(rows)
        for width, sites in _indices(self.spec.layout, layout).items():
            found = slab[width][:, chosen]
            if layout is not self.spec.layout:
                found = found[sites]
            self._buffer[width][:, filled].copy_(_on_host(found))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What goes into the file: a tensor ``[rows, width]`` per site, ``token_ids`` and ``positions``, ``[rows]``."""
        layout = self.spec.layout
        tensors = {site.name: layout.view(self._buffer, site)[: self.rows] for site in layout.sites}
        tensors["token_ids"] = torch.tensor(self.token_ids, dtype=torch.int64)
        tensors["positions"] = torch.tensor(self.positions, dtype=torch.int64)
        return tensors


def _on_host(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.device.type == "cpu" else torch.empty_like(rows, device="cpu", pin_memory=True).copy_(rows)
