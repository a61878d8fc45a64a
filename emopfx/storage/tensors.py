"""The header of a safetensors file: which tensors it has, and where their bytes are."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from emopfx.errors import RunError

# A first read that holds the header of most files.
GUESS_BYTES = 1 << 14
LARGEST_HEADER = 100_000_000


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


def read(read: Callable[[int, int], bytes], name: str) -> Header:
    """Read a file's header.

    Args:
        read: Reads bytes of the file, given where they start and how many they are.
        name: The file's name, for messages.

    Raises:
        RunError: If it is no safetensors file.
    """
    first = read(0, GUESS_BYTES)
    size = 8 + int.from_bytes(first[:8], "little")
    if len(first) < 8 or size > LARGEST_HEADER:
        raise RunError(f"{name} is no safetensors file")
    text = first[:size]
    if len(text) < size:
        text += read(len(text), size - len(text))
    try:
        return parse(text)
    except (AttributeError, KeyError, TypeError, IndexError, ValueError, RecursionError):
        raise RunError(f"{name} is no safetensors file") from None


def parse(text: bytes) -> Header:
    """Return what a header says, given its bytes with the length in front; many kinds of errors if it is none.

    Where tensors leave gaps, it is none either.
    """
    content: dict[str, Any] = json.loads(text[8:])
    metadata = content.pop("__metadata__", {})
    tensors = sorted((_tensor(name, entry, len(text)) for name, entry in content.items()), key=lambda one: one[3:])
    begins, ends = [one.begin for one in tensors], [len(text), *(one.end for one in tensors)]
    if begins != ends[:-1] or any(one.begin > one.end for one in tensors):
        raise ValueError("there are gaps between tensors")
    return Header(text, tensors, {str(key): str(value) for key, value in metadata.items()})


def _tensor(name: str, entry: dict[str, Any], start: int) -> Tensor:
    begin, end = entry["data_offsets"]
    return Tensor(name, str(entry["dtype"]), [int(length) for length in entry["shape"]], start + begin, start + end)


def header(tensors: Iterable[Tensor], metadata: dict[str, str]) -> bytes:
    """Return the beginning of a file with these tensors' bytes one after the other."""
    content: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.end - tensor.begin
        content[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    # The bytes of tensors begin at a multiple of eight, as the format asks.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
