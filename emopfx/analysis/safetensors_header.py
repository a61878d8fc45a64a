"""Reads a safetensors file's header by byte range, and believes nothing of it that isn't so."""

import json
import math
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

# A first read that holds the header of most files.
GUESS = 1 << 14
LARGEST = 100_000_000
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}

Count = Annotated[int, Field(ge=0)]


class Readable(Protocol):
    """Where files are: a disk, an object store."""

    def read(self, name: str, /, start: int, length: int) -> bytes:
        """Return a range of a file's bytes, fewer where the file ends; OSError if it can't be read."""


class BrokenError(Exception):
    """A file isn't what it should be; the message says how."""


class Entry(BaseModel):
    """What the header says of a tensor; its bytes are counted from the end of the header."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[Count]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]

    @property
    def begin(self) -> int:
        """Its first byte."""
        return self.data_offsets[0]

    @property
    def end(self) -> int:
        """The byte behind its last."""
        return self.data_offsets[1]


ENTRIES = TypeAdapter(dict[str, Entry])


def read(source: Readable, name: str) -> tuple[int, dict[str, Entry]]:
    """Return where a file's data start, and what its header says of each tensor.

    Raises:
        BrokenError: If it is no safetensors file, or a tensor has not as many bytes as its shape needs.
    """
    first = source.read(name, 0, GUESS)
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length > LARGEST:
        raise BrokenError(f"{name} is no safetensors file")
    text = first[8 : 8 + length]
    if len(text) < length:
        text += exactly(source, name, 8 + len(text), length - len(text))
    try:
        raw = json.loads(text)
        raw.pop("__metadata__", None)
        entries = ENTRIES.validate_python(raw)
    except (ValidationError, ValueError, AttributeError, TypeError, RecursionError):
        raise BrokenError(f"{name} has a broken header") from None
    for tensor, entry in entries.items():
        size = ITEM_BYTES.get(entry.dtype)
        if size and entry.end - entry.begin != size * math.prod(entry.shape):
            raise BrokenError(f"{name} has {entry.end - entry.begin} bytes of {tensor}, which its shape doesn't fit")
    return 8 + length, entries


def exactly(source: Readable, name: str, start: int, length: int) -> bytes:
    """Return a range of a file's bytes.

    Raises:
        BrokenError: If the file ends before.
    """
    found = source.read(name, start, length) if length else b""
    if len(found) != length:
        raise BrokenError(
            f"{name} ends too early: {length} bytes from {start} on are asked for, {len(found)} are there"
        )
    return found
