"""Digests that stay the same on every machine and in every process."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]


def digest(value: Json) -> str:
    """Return the SHA-256 (hex) of a JSON value in its canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
