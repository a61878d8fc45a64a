"""Reads captured activations by byte range: one layer, hook point and set of positions at a time."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from emopfx.analysis import activation_file
from emopfx.analysis.activation_file import FILE, File, Floats, Place, Positions, Readable, Site, Table, Tensor, Wanted
from emopfx.analysis.answers import Answer
from emopfx.hashing import Json
from emopfx.progress import Progress, say
from emopfx.safetensors_header import BrokenError

# Most reads wait for a disk or a network; as many files again lie ready, read and not yet asked for.
THREADS = 8
SHOWN_PROBLEMS = 10

Item = TypeVar("Item")
Result = TypeVar("Result")


class Source(Readable, Protocol):
    """Where the files of an experiment are."""

    def has(self, name: str, /) -> bool:
        """Whether there should be such a file."""


def having(source: Source, answers: Iterable[Answer]) -> list[bool]:
    """Say of which answers there is a file: what comes later is to be analyzed then."""
    folders = [(answer.breadcrumb or {}).get("save_dir") for answer in answers]
    return [isinstance(folder, str) and source.has(f"{folder}/{FILE}") for folder in folders]


def identities(root: Path, source: Source, answers: list[Answer]) -> list[Json]:
    """Return what changes with each answer's file: size and time of one on this disk, else what the manifest says.

    Args:
        root: The data folder on this disk.
        source: Where the files are; what it has not is None.
        answers: The answers.
    """
    found: list[Json] = []
    for answer, there in zip(answers, having(source, answers), strict=True):
        breadcrumb = answer.breadcrumb or {}
        path = root / str(breadcrumb.get("save_dir")) / FILE
        if there and path.is_file():
            state = path.stat()
            found.append([state.st_size, state.st_mtime_ns])
        else:
            found.append(breadcrumb.get("files") if there else None)
    return found


@dataclass
class Activations:
    """The activations of many samples, of which only headers and positions are in memory.

    Attributes:
        source: Where the files are.
        table: The type and width of every site's tensor, the same in all files.
        problems: What is wrong with the samples that can't be read, by key; grows while reading.
    """

    source: Readable
    table: dict[Site, Tensor]
    problems: dict[str, str]
    _files: dict[str, File]
    _indices: dict[Site, int] = field(init=False)

    def __post_init__(self) -> None:
        self._indices = {site: index for index, site in enumerate(self.table)}

    @classmethod
    def open(
        cls, source: Readable, samples: Mapping[str, Callable[[], Wanted]], advance: Callable[[], None]
    ) -> "Activations":
        """Read the headers and positions of all files.

        Files whose tensors differ from those of most files are problems, as are missing and broken ones.

        Args:
            source: Where the files are.
            samples: By key, what tells which files are a sample's; it may raise a BrokenError.
            advance: Called after each file.
        """
        problems: dict[str, str] = {}
        opened: dict[str, tuple[File, Table]] = {}

        def read(item: tuple[str, Callable[[], Wanted]]) -> "tuple[File, Table] | str":
            return _guarded(lambda: activation_file.open_file(source, item[1]()))

        for (key, _), found in in_parallel(read, samples.items()):
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

    def span(self, key: str, *positions: Positions) -> slice:
        """The rows of a sample at these positions, and those between them."""
        return self._files[key].span(positions)

    def count(self, key: str, positions: Positions) -> int:
        """How many rows of a sample were captured at these positions."""
        span = self.span(key, positions)
        return int(span.stop - span.start)

    def metadata(self, key: str) -> dict[str, Any]:
        """What metadata.json says of a sample, nothing where it is missing or broken."""
        return activation_file.read_metadata(self.source, self._files[key].wanted.save_dir)

    def rows(
        self, site: Site, *positions: Positions, keys: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Floats]]:
        """Yield the rows of one site, sample by sample (see `reduced`)."""
        for key, found in self.reduced([site], *positions, keys=keys, reduce=lambda key, rows: rows):
            yield key, found[site]

    def reduced(
        self,
        sites: Iterable[Site],
        *positions: Positions,
        keys: Iterable[str] | None = None,
        reduce: Callable[[str, Floats], Result],
    ) -> Iterator[tuple[str, dict[Site, Result]]]:
        """Yield what is made of each site's rows, sample by sample, some samples ahead.

        Rows that lie close, as those of a layer do, come by one ranged read.

        Args:
            sites: The layers and hook points.
            positions: Which tokens' rows: `prompt`, `last_prompt`, `generated` (those that passed through the model
                after the prompt), `last`, `all`; of several, also those between them. What wasn't captured is left
                out, so there may be none.
            keys: The samples, of which those are left out that can't be read; all by default.
            reduce: Given a sample's key and the rows of a site, `[tokens, width]`, float32, returns what is kept of
                them.

        Yields:
            A sample's key and what was kept. A sample that turns out to be unreadable is left out, and is among the
            `problems` from then on.
        """
        places = [Place(self._indices[site], site, self.table[site]) for site in sites]

        def read(key: str) -> dict[Site, Result]:
            rows_of = self._files[key].rows(self.source, places, positions)
            return {place.site: reduce(key, rows) for place, rows in rows_of}

        readable = set(self.keys)
        todo = [key for key in (self._files if keys is None else keys) if key in readable]
        for key, found in in_parallel(lambda key: _guarded(lambda: read(key)), todo):
            if isinstance(found, str):
                self.problems[key] = found
            else:
                yield key, found


def open_answers(source: Readable, answers: Iterable[Answer]) -> Activations:
    """Open the activations of answers (see `Activations.open`), and say which can't be read."""
    samples = {answer.key: partial(_wanted, answer) for answer in answers}
    with Progress("activations", len(samples)) as progress:
        opened = Activations.open(source, samples, progress.advance)
    for key, problem in list(opened.problems.items())[:SHOWN_PROBLEMS]:
        say(f"analyze: {key} is left out: {problem}")
    if len(opened.problems) > SHOWN_PROBLEMS:
        say(f"analyze: and {len(opened.problems) - SHOWN_PROBLEMS} more")
    return opened


def _wanted(answer: Answer) -> Wanted:
    if answer.breadcrumb is None:
        raise BrokenError(f"{answer.key} was answered without a capture")
    return activation_file.wanted(answer.breadcrumb, answer.prompt_tokens, answer.completion_tokens)


def _guarded(read: Callable[[], Result]) -> Result | str:
    """Return what was read, or in one sentence why nothing was."""
    try:
        return read()
    except BrokenError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or FILE} can't be read: {error.strerror or error}"


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
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
