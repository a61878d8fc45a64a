"""Reads pieces of activation files, on this disk or where the manifest says that they were pushed."""

import threading
from collections import OrderedDict
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from emopfx.layout import Layout
from emopfx.storage import manifest, parallel
from emopfx.storage.files import ACTIVATIONS, is_here, read_range
from emopfx.storage.layers import Partial
from emopfx.storage.manifest import Entry, Manifest
from emopfx.storage.s3 import Bucket

# How far the beginning of a file is kept once it was read, and how much there may be of all files: their headers and
# positions, which everybody who opens a file begins with.
LONGEST_HEAD = 1 << 18
HEADS_BYTES = 1 << 26


class PushedFiles:
    """An experiment's activation files, wherever each one is; use it as a context manager.

    A file of which only some layers are here is read as if it were whole; what is missing comes from S3.

    Args:
        layout: The experiment.
        endpoint_url: Address of the S3 service of entries that don't name theirs.
        entries: Its manifest, which says where files are that are not here; by default the one that is here.
    """

    def __init__(self, layout: Layout, endpoint_url: str | None = None, entries: Manifest | None = None) -> None:
        self._root, self._endpoint_url = layout.root, endpoint_url
        listed = manifest.here(layout) if entries is None else entries
        self._entries = {entry["save_dir"]: entry for entry in listed.values()}
        self._open = ExitStack()
        self._buckets: dict[tuple[str, str | None], Bucket] = {}
        self._partials: dict[str, Partial | None] = {}
        self._heads = Heads()

    def __enter__(self) -> "PushedFiles":
        for place in {self._place(entry) for entry in self._entries.values() if entry["uri"]}:
            self._buckets[place] = self._open.enter_context(Bucket(*place))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def has(self, name: str) -> bool:
        """Whether a file is here, or was pushed."""
        return (self._root / name).is_file() or bool(self._pushed(name))

    def read(self, name: str, start: int, length: int) -> bytes:
        """Return a range of a file's bytes, fewer where the file ends.

        What is not here comes by one ranged GET, and the beginnings of files only once.

        Args:
            name: The file's path under the data folder, which is its key under the URI.
            start: Where the range begins.
            length: How many bytes it has.

        Raises:
            OSError: If the file can't be read, is nowhere, or is not the one that the manifest names.
            RunError: If S3 can't be used.
        """
        partial_file = self._partial(name)
        found = partial_file.read(start, length) if partial_file else None
        if found is not None:
            return found
        pushed = self._pushed(name)
        if pushed and (partial_file or not self._is_here(name)):
            return self._read_there(pushed, name, start, length)
        if partial_file:
            raise FileNotFoundError(f"of {name}, only some layers are here, and it was not pushed")
        return read_range(self._root / name, start, length)

    def size(self, name: str) -> int:
        """Return how many bytes a whole file has: of one that is not here, what the manifest says and S3 confirms.

        Raises:
            FileNotFoundError: If it is nowhere.
        """
        entry = self._entries.get(name.rpartition("/")[0])
        sizes = {path: file["bytes"] for path, file in manifest.paths(entry)} if entry else {}
        if name in sizes and (self._partial(name) or (self._pushed(name) and not self._is_here(name))):
            return sizes[name]
        return (self._root / name).stat().st_size

    def _is_here(self, name: str) -> bool:
        """Whether a file is here, and not left over from a folder that was not completed or is being deleted."""
        return (self._root / name).is_file() and is_here(self._root, name.rpartition("/")[0])

    def _pushed(self, name: str) -> Entry | None:
        entry = self._entries.get(name.rpartition("/")[0])
        return entry if entry and entry["uri"] else None

    def _place(self, entry: Entry) -> tuple[str, str | None]:
        return manifest.root(entry), entry.get("endpoint_url", self._endpoint_url)

    def _partial(self, name: str) -> Partial | None:
        """Return what is here of a file, if that is some layers."""
        if not name.endswith(f"/{ACTIVATIONS}"):
            return None
        if name not in self._partials:
            self._partials[name] = Partial.open(self._root / name)
        return self._partials[name]

    def _read_there(self, entry: Entry, name: str, start: int, length: int) -> bytes:
        sizes = {path: file["bytes"] for path, file in manifest.paths(entry)}
        end = min(start + length, sizes.get(name, start + length))
        head = self._heads.get(name)
        if start > len(head) or end > LONGEST_HEAD:
            return self._ask(entry, name, start, end)
        if end > len(head):
            head += self._ask(entry, name, len(head), end)
            self._heads.keep(name, head)
        return head[start:end]

    def _ask(self, entry: Entry, name: str, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        bucket = self._buckets[self._place(entry)]
        file = next((file for path, file in manifest.paths(entry) if path == name), None)
        content, stored = parallel.patiently("analyze", partial(bucket.piece, name, start, end - start))
        if file and (stored.bytes, stored.sha256 or file["sha256"]) != (file["bytes"], file["sha256"]):
            raise OSError(f"{bucket.uri(name)} is not the file that the manifest names")
        return content


class Heads:
    """The beginnings of files, those last used, in bounded memory."""

    def __init__(self) -> None:
        self._heads: OrderedDict[str, bytes] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def get(self, name: str) -> bytes:
        """Return what is known of a file's beginning."""
        with self._lock:
            if name in self._heads:
                self._heads.move_to_end(name)
            return self._heads.get(name, b"")

    def keep(self, name: str, head: bytes) -> None:
        """Keep a file's beginning, and let go of others if there are too many."""
        with self._lock:
            self._bytes += len(head) - len(self._heads.pop(name, b""))
            self._heads[name] = head
            while self._bytes > HEADS_BYTES:
                self._bytes -= len(self._heads.popitem(last=False)[1])
