"""One sample's activations file: what is in it, where, and the rows of one tensor at some positions."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from emopfx import safetensors_header
from emopfx.safetensors_header import BrokenError, exactly

FILE, METADATA = "activations.safetensors", "metadata.json"
Positions = Literal["all", "prompt", "last_prompt", "generated", "last"]
Floats = npt.NDArray[np.float32]
SITE = re.compile(r"layers\.(\d{1,9})\.(.+)")
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
LARGEST_METADATA = 1 << 26
# What is read in vain rather than to ask once more: about what a disk reads ahead, or a quarter of what is wanted.
VAIN_BYTES, VAIN_SHARE = 1 << 17, 0.25
# Of this much, to ask once more costs next to nothing.
TOGETHER_BYTES = 1 << 24


class Readable(Protocol):
    """Where files are: a disk, an object store."""

    def read(self, name: str, /, start: int, length: int) -> bytes:
        """Return a range of a file's bytes, fewer where the file ends; OSError if it can't be read."""

    def size(self, name: str, /) -> int:
        """Return how many bytes a file has; OSError if there is none."""


class Site(NamedTuple):
    """A place in the network: a hook point of a layer."""

    layer: int
    hook_point: str

    @property
    def name(self) -> str:
        """The name of its tensor."""
        return f"layers.{self.layer}.{self.hook_point}"


class Wanted(NamedTuple):
    """A sample's activations as the manifest and the answer name them (see `wanted`).

    Attributes:
        save_dir: Their folder, relative to the source.
        bytes: The size of the activations file.
        prompt_tokens: The prompt's length.
        tokens: How many tokens passed through the model, captured or not.
    """

    save_dir: str
    bytes: int
    prompt_tokens: int
    tokens: int


class _NamedFile(BaseModel):
    name: str
    bytes: Annotated[int, Field(ge=1)]


class _Named(BaseModel):
    save_dir: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    files: list[_NamedFile]


class Tensor(NamedTuple):
    """The type and the width of a tensor."""

    dtype: str
    width: int

    @property
    def row_bytes(self) -> int:
        """How many bytes a row has."""
        return self.width * np.dtype(DTYPES[self.dtype]).itemsize


class Place(NamedTuple):
    """Where all files have the rows of a site: the number of its tensor in their table, its type and width."""

    number: int
    site: Site
    tensor: Tensor


@dataclass(frozen=True)
class File:
    """An open file, of which only positions are in memory.

    Attributes:
        name: Its path in the source.
        wanted: What was expected of it.
        positions: The positions of its rows, ascending.
        begins: Where each site's tensor begins, in the order of the table.
    """

    name: str
    wanted: Wanted
    positions: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int64]

    def span(self, positions: Iterable[Positions]) -> slice:
        """Return the range of rows that holds all that are at these positions."""
        prompt, tokens = self.wanted.prompt_tokens, self.wanted.tokens
        ends = {
            "all": (0, tokens),
            "prompt": (0, prompt),
            "last_prompt": (prompt - 1, prompt),
            "generated": (prompt, tokens),
            "last": (tokens - 1, tokens),
        }
        spans = np.array([np.searchsorted(self.positions, ends[name]) for name in positions])
        spans = spans[spans[:, 0] < spans[:, 1]]
        return slice(int(spans[:, 0].min()), int(spans[:, 1].max())) if len(spans) else slice(0, 0)

    def rows(
        self, source: Readable, places: Iterable[Place], positions: Iterable[Positions]
    ) -> Iterator[tuple[Place, Floats]]:
        """Yield the rows of each place at these positions; raises as `open_file` does.

        Those that lie close come by one read.

        Args:
            source: Where the file is.
            places: The places.
            positions: Which rows.
        """
        span, read = self.span(positions), partial(source.read, self.name)
        ranges = []
        for place in places:
            begin, size = int(self.begins[place.number]), place.tensor.row_bytes
            ranges.append(Range(begin + span.start * size, begin + span.stop * size, place))
        for together in _together(ranges) if span.stop > span.start else ([one] for one in ranges):
            start, end = together[0].begin, together[-1].end
            data = memoryview(exactly(read, self.name, start, end - start))
            for begin, end, place in together:
                yield place, self._floats(place, data[begin - start : end - start], span.stop - span.start)

    def _floats(self, place: Place, data: memoryview, count: int) -> Floats:
        raw = np.frombuffer(data, DTYPES[place.tensor.dtype]).reshape(count, place.tensor.width)
        if place.tensor.dtype == "BF16":
            # numpy has none: it is the upper half of a float32.
            upper = raw.astype(np.uint32)
            upper <<= 16
            values = upper.view(np.float32)
        else:
            values = raw.astype(np.float32)
        if not np.isfinite(values).all():
            raise BrokenError(f"{self.name} holds numbers that are not finite in {place.site.name}")
        return values


class Range(NamedTuple):
    """Where the wanted rows of a place are in a file."""

    begin: int
    end: int
    place: Place


def _together(ranges: list[Range]) -> Iterator[list[Range]]:
    """Yield those ranges together, in order, that are better read at once."""
    group: list[Range] = []
    wanted = 0
    for one in sorted(ranges):
        size = one.end - one.begin
        vain = max(VAIN_BYTES, VAIN_SHARE * (wanted + size))
        if group and (one.begin - group[-1].end > vain or one.end - group[0].begin > TOGETHER_BYTES):
            yield group
            group, wanted = [], 0
        group.append(one)
        wanted += size
    yield group


def wanted(entry: Mapping[str, object], prompt_tokens: int, completion_tokens: int) -> Wanted:
    """Return what a breadcrumb, or an entry of the manifest, says of a sample's activations.

    Raises:
        BrokenError: If it doesn't name them.
    """
    try:
        named = _Named.model_validate(entry)
        size = next(file.bytes for file in named.files if file.name == FILE)
    except (ValidationError, StopIteration):
        raise BrokenError(f"its sample.json or the manifest names no {FILE} with a size") from None
    # The last generated token never passes through the model.
    return Wanted(named.save_dir, size, prompt_tokens, prompt_tokens + completion_tokens - 1)


Table = tuple[tuple[Site, Tensor], ...]


def open_file(source: Readable, wanted: Wanted) -> tuple[File, Table]:
    """Read a file's header and positions.

    Raises:
        BrokenError: If it isn't what it should be.
        OSError: If it can't be read.
    """
    name = f"{wanted.save_dir}/{FILE}"
    read = partial(source.read, name)
    header = safetensors_header.read(read, name)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    places = tensors.get("positions")
    if places is None or places.dtype != "I64":
        raise BrokenError(f"{name} has no positions")
    if header.size != wanted.bytes:
        raise BrokenError(f"{name} describes {header.size} bytes, but {wanted.bytes} were written")
    if (size := source.size(name)) != wanted.bytes:
        raise BrokenError(f"{name} ends too early: it has {size} bytes, but {wanted.bytes} were written")
    positions = np.frombuffer(exactly(read, name, places.begin, places.end - places.begin), "<i8")
    shapes = {tuple(tensor.shape[:1]) for tensor in header.tensors}
    if shapes != {positions.shape} or (np.diff(positions) <= 0).any() or (positions >> 31).any():
        raise BrokenError(f"{name} has positions that don't fit its rows")
    sites = {
        Site(int(match[1]), match[2]): tensor
        for key, tensor in tensors.items()
        if (match := SITE.fullmatch(key)) and len(tensor.shape) == 2
    }
    if unknown := {tensor.dtype for tensor in sites.values()} - DTYPES.keys():
        raise BrokenError(f"{name} holds {unknown.pop()}; F32, F16 and BF16 can be read")
    ordered = sorted(sites)
    begins = np.array([sites[site].begin for site in ordered], np.int64)
    table = tuple((site, Tensor(sites[site].dtype, sites[site].shape[1])) for site in ordered)
    return File(name, wanted, positions.astype(np.int32), begins), table


def read_metadata(source: Readable, save_dir: str) -> dict[str, Any]:
    """Return what metadata.json says of a sample's activations, nothing where it is missing or broken."""
    try:
        record = json.loads(source.read(f"{save_dir}/{METADATA}", 0, LARGEST_METADATA))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
