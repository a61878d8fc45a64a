"""The header of a safetensors file: which tensors it has, and where their bytes are. It is read by byte range."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

# A first read that holds the header of most files.
GUESS_BYTES = 1 << 14
LARGEST_BYTES = 100_000_000
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}

# Returns bytes of a file, given where they start and how many they are; fewer where the file ends.
Read = Callable[[int, int], bytes]
Count = Annotated[int, Field(ge=0)]


class BrokenError(Exception):
    """A file isn't what it should be; the message says how."""


class _Entry(BaseModel):
    """What a header says of a tensor; its bytes are counted from the end of the header."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[Count]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


_ENTRIES, _METADATA = TypeAdapter(dict[str, _Entry]), TypeAdapter(dict[str, str])


class Tensor(NamedTuple):
    """A tensor; its bytes are counted from the beginning of the file."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's header.

    Attributes:
        text: Its bytes, with the length in front, just as they begin the file.
        tensors: The tensors, in the order of their bytes, which leave no gap.
        metadata: What else it says.
    """

    text: bytes
    tensors: list[Tensor]
    metadata: dict[str, str]

    @property
    def size(self) -> int:
        """How many bytes the file has."""
        return self.tensors[-1].end if self.tensors else len(self.text)


def read(source: Read, name: str) -> Header:
    """Read a file's header, and believe nothing of it that isn't so.

    Args:
        source: Reads the file.
        name: Its name, for messages.

    Raises:
        BrokenError: If it is no safetensors file, or a tensor has not as many bytes as its shape needs.
    """
    first = source(0, GUESS_BYTES)
    size = 8 + int.from_bytes(first[:8], "little")
    if len(first) < 8 or size > LARGEST_BYTES:
        raise BrokenError(f"{name} is no safetensors file")
    text = first[:size]
    return parse(text + exactly(source, name, len(text), size - len(text)), name)


def parse(text: bytes, name: str) -> Header:
    """Return what a header says, given its bytes with the length in front (see `read`)."""
    try:
        content = json.loads(text[8:])
        metadata = _METADATA.validate_python(content.pop("__metadata__", {}))
        entries = _ENTRIES.validate_python(content)
    except (ValidationError, ValueError, AttributeError, TypeError, RecursionError):
        raise BrokenError(f"{name} has a broken header") from None
    start = len(text)
    found = (
        Tensor(key, e.dtype, e.shape, start + e.data_offsets[0], start + e.data_offsets[1])
        for key, e in entries.items()
    )
    tensors = sorted(found, key=lambda tensor: tensor[3:])
    for tensor in tensors:
        size, needed = tensor.end - tensor.begin, ITEM_BYTES.get(tensor.dtype, 0) * math.prod(tensor.shape)
        if tensor.begin != start or size < 0:
            raise BrokenError(f"{name} has a broken header")
        if tensor.dtype in ITEM_BYTES and size != needed:
            raise BrokenError(f"{name} has {size} bytes of {tensor.name}, which its shape doesn't fit")
        start = tensor.end
    return Header(text, tensors, metadata)


def exactly(source: Read, name: str, start: int, length: int) -> bytes:
    """Return bytes of a file.

    Raises:
        BrokenError: If it ends before.
    """
    found = source(start, length) if length else b""
    if len(found) != length:
        raise BrokenError(
            f"{name} ends too early: {length} bytes from {start} on are asked for, {len(found)} are there"
        )
    return found


def write(tensors: Iterable[Tensor], metadata: dict[str, str]) -> bytes:
    """Return the beginning of a file with these tensors' bytes one after the other."""
    content: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.end - tensor.begin
        content[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    # The bytes of tensors begin at a multiple of eight, as the format asks.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
