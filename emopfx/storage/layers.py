"""Files of some layers: fetched from whole ones in a bucket, and read as if they were whole."""

import re
from collections.abc import Set
from contextlib import closing
from functools import partial
from pathlib import Path

from emopfx import safetensors_header
from emopfx.errors import RunError
from emopfx.safetensors_header import BrokenError, Header, Tensor
from emopfx.storage.files import read_range
from emopfx.storage.manifest import File
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import OtherContent

LAYER = re.compile(r"layers\.(\d{1,9})\.")
# The header of the whole file, which a file of some layers keeps in its own.
WHOLE = "whole_header"


class Partial:
    """A file of some layers, read by the offsets of the whole file.

    Attributes:
        layers: Their numbers.
        names: The names of its tensors.
    """

    def __init__(self, path: Path, own: Header, whole: Header) -> None:
        self._path, self._whole = path, whole
        places = {tensor.name: tensor for tensor in whole.tensors}
        # Where each of its tensors is in the whole file, and how much later than in its own.
        self._spans = [
            (places[one.name].begin, places[one.name].end, places[one.name].begin - one.begin) for one in own.tensors
        ]
        self.layers, self.names = _numbers(own), {one.name for one in own.tensors}

    @classmethod
    def open(cls, path: Path) -> "Partial | None":
        """Return the file of some layers that is at a path, None if there is none."""
        try:
            own = safetensors_header.read(partial(read_range, path), str(path))
            text = own.metadata[WHOLE].encode()
            return cls(path, own, safetensors_header.parse(len(text).to_bytes(8, "little") + text, WHOLE))
        except (OSError, BrokenError, KeyError):
            return None

    def read(self, start: int, length: int) -> bytes | None:
        """Return bytes of the whole file, None if not all are here.

        A read from the start on gets the header and what follows it here: who begins to read can't know how much to
        ask for.
        """
        end, found = min(start + length, self._whole.size), self._whole.text[start : start + length]
        for begin, stop, later in sorted(self._spans):
            at = start + len(found)
            if begin <= at < stop and at < end:
                found += read_range(self._path, at - later, min(end, stop) - at)
        complete = len(found) >= end - start or (start == 0 and len(found) >= len(self._whole.text))
        return found if complete else None


def fetch(
    bucket: Bucket,
    key: str,
    path: Path,
    layers: Set[int],
    file: File,
    *,
    checksum: str | None = None,
    before: Partial | None = None,
) -> None:
    """Write a safetensors file with only these layers' tensors, and those that belong to no layer.

    Tensors that lie side by side come by one ranged read.

    Args:
        bucket: Where the whole file is.
        key: Its key.
        path: What is written.
        layers: The layers' numbers.
        file: What the whole file must be.
        checksum: What S3 must have for a checksum of it if it was sent in parts (else it is read as a whole).
        before: A file of other layers, which need not be fetched again.

    Raises:
        OtherContent: If the object is not that file.
        RunError: If it lacks a layer, or is no safetensors file.
    """
    stored = bucket.stored(key)
    problem = bucket.problem(key, stored, file["bytes"], file["sha256"], checksum=checksum, strict=True)
    if problem:
        raise OtherContent(problem)
    try:
        whole = safetensors_header.read(
            lambda start, length: bucket.piece(key, start, length, of=stored)[0], bucket.uri(key)
        )
    except BrokenError as error:
        raise RunError(str(error)) from None
    if whole.size != file["bytes"]:
        raise RunError(f"{bucket.uri(key)} has {file['bytes']} bytes, but its header describes {whole.size}")
    numbers = _numbers(whole)
    if lacking := layers - numbers:
        raise RunError(f"{bucket.uri(key)} has no layer {min(lacking)}; it has {', '.join(map(str, sorted(numbers)))}")
    chosen = [one for one in whole.tensors if not (match := LAYER.match(one.name)) or int(match[1]) in layers]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        target.write(safetensors_header.write(chosen, whole.metadata | {WHOLE: whole.text[8:].decode()}))
        for begin, end, is_here in _ranges(chosen, before.names if before else frozenset()):
            if before and is_here and (content := before.read(begin, end - begin)):
                target.write(content)
                continue
            with closing(bucket.stream(key, begin, end, of=stored, size=file["bytes"])) as contents:
                target.writelines(contents)


def _ranges(chosen: list[Tensor], here: Set[str]) -> list[tuple[int, int, bool]]:
    """Return the ranges of the whole file that are asked for, and whether each is here; those that touch are joined."""
    joined: list[tuple[int, int, bool]] = []
    for tensor in chosen:
        is_here = tensor.name in here
        if joined and joined[-1][1:] == (tensor.begin, is_here):
            joined[-1] = (joined[-1][0], tensor.end, is_here)
        elif tensor.end > tensor.begin:
            joined.append((tensor.begin, tensor.end, is_here))
    return joined


def _numbers(header: Header) -> set[int]:
    return {int(match[1]) for one in header.tensors if (match := LAYER.match(one.name))}
