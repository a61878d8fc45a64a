"""Fetches some layers of an activations file in a bucket, as a smaller file of the same format."""

import json
import re
from collections.abc import Set
from pathlib import Path
from typing import Any

from emopfx.errors import RunError
from emopfx.storage.s3 import Bucket

# A first read that holds the header of most files.
HEADER_GUESS = 1 << 14
LARGEST_HEADER = 100_000_000
LAYER = re.compile(r"layers\.(\d+)\.")


def fetch(bucket: Bucket, key: str, path: Path, layers: Set[int]) -> None:
    """Write a safetensors file with only these layers' tensors, and those that belong to no layer.

    Tensors that lie side by side come by one ranged read.

    Raises:
        RunError: If the object lacks a layer, or is no safetensors file.
    """
    header, start = _read_header(bucket, key)
    metadata = header.pop("__metadata__", {})
    numbers = {int(match[1]) for name in header if (match := LAYER.match(name))}
    if lacking := layers - numbers:
        raise RunError(f"{bucket.uri(key)} has no layer {min(lacking)}; it has {', '.join(map(str, sorted(numbers)))}")
    chosen = [
        (name, entry) for name, entry in header.items() if not (match := LAYER.match(name)) or int(match[1]) in layers
    ]
    chosen.sort(key=lambda item: item[1]["data_offsets"][0])
    text = _header([entry | {"name": name} for name, entry in chosen], metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(text)
        for begin, end in _ranges([entry["data_offsets"] for _, entry in chosen]):
            file.write(bucket.read(key, start + begin, end - begin))


def _read_header(bucket: Bucket, key: str) -> tuple[dict[str, Any], int]:
    """Return a safetensors object's header, and where its data start."""
    first = bucket.read(key, 0, HEADER_GUESS)
    length = int.from_bytes(first[:8], "little")
    if length > LARGEST_HEADER:
        raise RunError(f"{bucket.uri(key)} is no safetensors file")
    text = first[8 : 8 + length]
    if len(text) < length:
        text += bucket.read(key, 8 + len(text), length - len(text))
    try:
        header = json.loads(text)
    except ValueError:
        raise RunError(f"{bucket.uri(key)} is no safetensors file") from None
    return header, 8 + length


def _header(tensors: list[dict[str, Any]], metadata: dict[str, str]) -> bytes:
    """Return the length and header of a file with these tensors' data one after the other."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor["data_offsets"][1] - tensor["data_offsets"][0]
        header[tensor["name"]] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data begin at a multiple of eight bytes, as the format asks.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _ranges(offsets: list[list[int]]) -> list[list[int]]:
    """Return ranges, in order, with those joined that touch; empty ones are left out."""
    joined: list[list[int]] = []
    for begin, end in offsets:
        if joined and joined[-1][1] == begin:
            joined[-1][1] = end
        elif end > begin:
            joined.append([begin, end])
    return joined
