"""Reads pieces of activation files, on this disk or where the manifest says that they were pushed."""

import os
from contextlib import ExitStack
from types import TracebackType

from emopfx.layout import Layout, read_json
from emopfx.storage import manifest
from emopfx.storage.s3 import Bucket


class PushedFiles:
    """An experiment's activation files, wherever each one is; use it as a context manager.

    Args:
        layout: The experiment; its manifest says where files are that are not here.
        endpoint_url: Address of the S3 service, if it is not AWS or is not named by boto3's own settings.
    """

    def __init__(self, layout: Layout, endpoint_url: str | None = None) -> None:
        self._root, self._endpoint_url = layout.root, endpoint_url
        entries = (read_json(layout.manifest) or {}).values()
        self._places = {entry["save_dir"]: manifest.root(entry) for entry in entries if entry["uri"]}
        self._open = ExitStack()
        self._buckets: dict[str, Bucket] = {}

    def __enter__(self) -> "PushedFiles":
        for root in set(self._places.values()):
            self._buckets[root] = self._open.enter_context(Bucket(root, self._endpoint_url))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def has(self, name: str) -> bool:
        """Whether a file is here, or was pushed."""
        return (self._root / name).is_file() or name.rpartition("/")[0] in self._places

    def read(self, name: str, start: int, length: int) -> bytes:
        """Return a range of a file's bytes, fewer where the file ends, by one ranged GET if the file is not here.

        Args:
            name: The file's path under the data folder, which is its key under the URI.
            start: Where the range begins.
            length: How many bytes it has.

        Raises:
            OSError: If the file can't be read, or is nowhere.
            RunError: If S3 can't be used.
        """
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY)
        except FileNotFoundError:
            place = self._places.get(name.rpartition("/")[0])
            if place is None:
                raise
            return self._buckets[place].read(name, start, length)
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)
