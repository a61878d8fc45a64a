"""Reads captured activations by byte range: one layer, hook point and set of positions at a time."""

import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from emopfx.analysis.answers import Answer
from emopfx.progress import Progress, say

FILE = "activations.safetensors"
Positions = Literal["all", "prompt", "last_prompt", "answer", "generated", "last"]
Floats = npt.NDArray[np.float32]
# Most reads wait for a disk or a network; as many files again lie ready, read and not yet asked for.
THREADS = 8
# A first read that holds the header of most files.
HEADER_GUESS = 1 << 14
SHOWN_PROBLEMS = 10
LARGEST_HEADER = 100_000_000
SITE = re.compile(r"layers\.(\d+)\.(.+)")
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}

Item = TypeVar("Item")
Result = TypeVar("Result")


class Source(Protocol):
    """Where the files are: a disk, an object store."""

    def read(self, name: str, /, start: int, length: int) -> bytes:
        """Return a range of a file's bytes, fewer where the file ends; OSError if it can't be read."""

    def has(self, name: str, /) -> bool:
        """Whether there should be such a file."""


@dataclass(frozen=True)
class LocalFiles:
    """Files under a folder on this disk."""

    root: Path

    def read(self, name: str, /, start: int, length: int) -> bytes:
        """Return a range of a file's bytes (see `Source`)."""
        descriptor = os.open(self.root / name, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)

    def has(self, name: str, /) -> bool:
        """Whether there is such a file."""
        return (self.root / name).is_file()


def having(source: Source, answers: Iterable[Answer]) -> list[bool]:
    """Say of which answers (with breadcrumbs) there is a file: what comes later is to be analyzed then."""
    return [source.has(f"{(answer.breadcrumb or {})['save_dir']}/{FILE}") for answer in answers]


class Site(NamedTuple):
    """A place in the network: a hook point of a layer."""

    layer: int
    hook_point: str

    @property
    def name(self) -> str:
        """The name of its tensor."""
        return f"layers.{self.layer}.{self.hook_point}"


class Wanted(NamedTuple):
    """A sample's activations as the manifest and the answer name them.

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


class _Tensor(NamedTuple):
    dtype: str
    width: int


@dataclass(frozen=True)
class _File:
    name: str
    wanted: Wanted
    positions: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int64]  # where each site's tensor begins, in the order of the table


class _BrokenError(Exception):
    """A file isn't what it should be; the message says how."""


@dataclass
class Activations:
    """The activations of many samples, of which only headers and positions are in memory.

    Attributes:
        source: Where the files are.
        table: The type and width of every site's tensor, the same in all files.
        problems: What is wrong with the samples that can't be read, by key; grows while reading.
    """

    source: Source
    table: dict[Site, _Tensor]
    problems: dict[str, str]
    _files: dict[str, _File]
    _indices: dict[Site, int] = field(init=False)

    def __post_init__(self) -> None:
        self._indices = {site: index for index, site in enumerate(self.table)}

    @classmethod
    def open(cls, source: Source, samples: Mapping[str, Wanted], advance: Callable[[], None]) -> "Activations":
        """Read the headers and positions of all files.

        Files whose tensors differ from those of most files are problems, as are missing and broken ones.

        Args:
            source: Where the files are.
            samples: The samples' activations, by key.
            advance: Called after each file.
        """
        problems: dict[str, str] = {}
        opened: dict[str, tuple[_File, tuple[tuple[Site, _Tensor], ...]]] = {}

        def read(item: tuple[str, Wanted]) -> "tuple[_File, tuple[tuple[Site, _Tensor], ...]] | str":
            return _guarded(lambda: _open(source, item[1]))

        for (key, _), found in _in_parallel(read, samples.items()):
            advance()
            if isinstance(found, str):
                problems[key] = found
            else:
                opened[key] = found
        tables = Counter(table for _, table in opened.values())
        usual = tables.most_common(1)[0][0] if tables else ()
        for key, (file, table) in opened.items():
            if table != usual:
                problems[key] = f"{file.name} has other tensors than most files"
        files = {key: file for key, (file, table) in opened.items() if table == usual}
        return cls(source, dict(usual), problems, files)

    @property
    def sites(self) -> list[Site]:
        """All layers and hook points, from the first layer on."""
        return sorted(self.table, key=lambda site: site.layer)

    @property
    def keys(self) -> list[str]:
        """The samples that can be read, as far as is known."""
        return [key for key in self._files if key not in self.problems]

    def width(self, site: Site) -> int:
        """The length of a row of a site."""
        return self.table[site].width

    def save_dir(self, key: str) -> str:
        """The folder of a sample's files, relative to the source."""
        return self._files[key].wanted.save_dir

    def count(self, key: str, positions: Positions) -> int:
        """How many rows of a sample were captured at these positions."""
        start, stop = _span(self._files[key], positions)
        return stop - start

    def rows(self, site: Site, positions: Positions, keys: Iterable[str] | None = None) -> Iterator[tuple[str, Floats]]:
        """Yield the rows of one site, sample by sample, by one ranged read each, some samples ahead.

        Args:
            site: The layer and hook point.
            positions: Which tokens' rows: `prompt`, `last_prompt`, `generated` (those that passed through the model
                after the prompt), `answer` (those whose output is the answer: the last of the prompt and the generated
                ones), `last`, `all`. What wasn't captured is left out, so there may be none.
            keys: The samples; all that can be read by default.

        Yields:
            A sample's key and its rows, `[tokens, width]`, float32. A sample that turns out to be unreadable is left
            out, and is among the `problems` from then on.
        """
        tensor, index = self.table[site], self._indices[site]

        def read(key: str) -> Floats | str:
            return _guarded(lambda: _read(self.source, self._files[key], tensor, index, positions, site))

        todo = [key for key in (self._files if keys is None else keys) if key not in self.problems]
        for key, found in _in_parallel(read, todo):
            if isinstance(found, str):
                self.problems[key] = found
            else:
                yield key, found


def open_answers(source: Source, answers: Iterable[Answer]) -> Activations:
    """Open the activations of answers (see `Activations.open`), and say which can't be read."""
    samples = {answer.key: _wanted(answer, answer.breadcrumb) for answer in answers if answer.breadcrumb}
    with Progress("activations", len(samples)) as progress:
        opened = Activations.open(source, samples, progress.advance)
    for key, problem in list(opened.problems.items())[:SHOWN_PROBLEMS]:
        say(f"analyze: {key} is left out: {problem}")
    if len(opened.problems) > SHOWN_PROBLEMS:
        say(f"analyze: and {len(opened.problems) - SHOWN_PROBLEMS} more")
    return opened


def _wanted(answer: Answer, breadcrumb: Mapping[str, Any]) -> Wanted:
    size = next(file["bytes"] for file in breadcrumb["files"] if file["name"] == FILE)
    # The last generated token never passes through the model.
    return Wanted(
        breadcrumb["save_dir"], size, answer.prompt_tokens, answer.prompt_tokens + answer.completion_tokens - 1
    )


def _guarded(read: Callable[[], Result]) -> Result | str:
    """Return what was read, or in one sentence why nothing was."""
    try:
        return read()
    except _BrokenError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or FILE} can't be read: {error.strerror or error}"


def _in_parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Yield items with their results, in order, working a bounded number of items ahead."""
    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                ahead.append((item, pool.submit(work, item)))
                if len(ahead) == 2 * THREADS:
                    done, future = ahead.popleft()
                    yield done, future.result()
            for done, future in ahead:
                yield done, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _open(source: Source, wanted: Wanted) -> tuple[_File, tuple[tuple[Site, _Tensor], ...]]:
    name = f"{wanted.save_dir}/{FILE}"
    start, header = _header(source, name)
    try:
        ends = [entry["data_offsets"][1] for entry in header.values()]
        sites = {
            Site(int(match[1]), match[2]): (
                _Tensor(entry["dtype"], entry["shape"][1]),
                start + entry["data_offsets"][0],
            )
            for key, entry in header.items()
            if (match := SITE.fullmatch(key)) and len(entry["shape"]) == 2
        }
        begin, end = header["positions"]["data_offsets"]
        rows = {entry["shape"][0] for entry in header.values()}
    except (KeyError, TypeError, IndexError, ValueError):
        raise _BrokenError(f"{name} has no positions, or a header that isn't safetensors'") from None
    if start + max(ends) != wanted.bytes:
        raise _BrokenError(f"{name} describes {start + max(ends)} bytes, but {wanted.bytes} were written")
    _exactly(source, name, wanted.bytes - 1, 1)
    positions = np.frombuffer(_exactly(source, name, start + begin, end - begin), "<i8")
    if rows != {len(positions)} or (np.diff(positions) <= 0).any():
        raise _BrokenError(f"{name} has positions that don't fit its rows")
    if unknown := {tensor.dtype for tensor, _ in sites.values()} - DTYPES.keys():
        raise _BrokenError(f"{name} holds {unknown.pop()}; F32, F16 and BF16 can be read")
    ordered = sorted(sites)
    file = _File(name, wanted, positions.astype(np.int32), np.array([sites[site][1] for site in ordered], np.int64))
    return file, tuple((site, sites[site][0]) for site in ordered)


def _header(source: Source, name: str) -> tuple[int, dict[str, Any]]:
    """Return where a safetensors file's data start, and what its header says of each tensor."""
    first = source.read(name, 0, HEADER_GUESS)
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length > LARGEST_HEADER:
        raise _BrokenError(f"{name} is no safetensors file")
    text = first[8 : 8 + length]
    if len(text) < length:
        text += _exactly(source, name, 8 + len(text), length - len(text))
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
    except (ValueError, AttributeError):
        raise _BrokenError(f"{name} has a broken header") from None
    return 8 + length, header


def _exactly(source: Source, name: str, start: int, length: int) -> bytes:
    found = source.read(name, start, length) if length else b""
    if len(found) != length:
        raise _BrokenError(
            f"{name} ends too early: {length} bytes from {start} on are asked for, {len(found)} are there"
        )
    return found


def _span(file: _File, positions: Positions) -> tuple[int, int]:
    """Return the range of a file's rows that are at these positions."""
    prompt, tokens = file.wanted.prompt_tokens, file.wanted.tokens
    first, last = {
        "all": (0, tokens),
        "prompt": (0, prompt),
        "last_prompt": (prompt - 1, prompt),
        "answer": (prompt - 1, tokens),
        "generated": (prompt, tokens),
        "last": (tokens - 1, tokens),
    }[positions]
    start, stop = np.searchsorted(file.positions, (first, last))
    return int(start), int(stop)


def _read(source: Source, file: _File, tensor: _Tensor, index: int, positions: Positions, site: Site) -> Floats:
    start, stop = _span(file, positions)
    dtype = np.dtype(DTYPES[tensor.dtype])
    row = tensor.width * dtype.itemsize
    data = _exactly(source, file.name, int(file.begins[index]) + start * row, (stop - start) * row)
    raw = np.frombuffer(data, dtype).reshape(stop - start, tensor.width)
    # numpy has no bfloat16: it is the upper half of a float32.
    values = (raw.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "BF16" else raw.astype(np.float32)
    if not np.isfinite(values).all():
        raise _BrokenError(f"{file.name} holds numbers that are not finite in {site.name}")
    return values
