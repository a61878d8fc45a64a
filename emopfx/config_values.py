"""Values in a config that may be written in several ways: layers, positions, addresses of S3."""

import re
from typing import Annotated, Literal

from pydantic import Field

_INDEX = "(?:-?[0-9]{1,9})?"
LAYERS_PATTERN = re.compile(f"{_INDEX}:{_INDEX}(?::{_INDEX})?")
POSITIONS_PATTERN = re.compile("[0-9]{0,9}:[0-9]{0,9}")
S3_URI_PATTERN = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s?#]*)?")
# Without a user and a password in it: credentials are no part of a config.
ENDPOINT_PATTERN = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")

# What the JSON Schema says of layers and positions.
Layers = (
    Literal["all"]
    | Annotated[str, Field(pattern=f"^{LAYERS_PATTERN.pattern}$")]
    | Annotated[list[int], Field(min_length=1)]
)
Ranges = Annotated[list[Annotated[str, Field(pattern=f"^{POSITIONS_PATTERN.pattern}$")]], Field(min_length=1)]
ChangedPositions = Literal["all", "prompt", "generated", "last_prompt"] | Ranges
Positions = ChangedPositions | Literal["last"]


def read_layers(value: object) -> object:
    """Return layers as they were given: all, a list of numbers, or a slice.

    Raises:
        ValueError: If it is none of these.
    """
    whole_numbers = isinstance(value, list) and value and all(type(item) is int for item in value)
    if value == "all" or whole_numbers or (isinstance(value, str) and LAYERS_PATTERN.fullmatch(value)):
        return value
    # YAML reads an unquoted 1:4 as 64, a number in base 60.
    hint = "; quote a slice, as in '1:4'" if type(value) is int else ""
    raise ValueError(f"layers must be all, a list like [0, 5, -1] or a slice like '0:28:4', got {value!r}{hint}")


def read_positions(value: object) -> object:
    """Return positions as they were given: all, prompt, generated, last_prompt, last, or a list of ranges.

    Raises:
        ValueError: If it is none of these.
    """
    ranges = isinstance(value, list) and value and all(_is_range(item) for item in value)
    if value in ("all", "prompt", "generated", "last_prompt", "last") or ranges:
        return value
    hint = "; quote a range, as in ['1:4']" if isinstance(value, list) and any(type(i) is int for i in value) else ""
    raise ValueError(
        "positions must be all, prompt, generated, last_prompt, last or a list of ranges like ['0:4'], "
        f"got {value!r}{hint}"
    )


def _is_range(value: object) -> bool:
    return isinstance(value, str) and POSITIONS_PATTERN.fullmatch(value) is not None


def read_changed_positions(value: object) -> object:
    """Return positions of tokens that are changed while they pass (see `read_positions`).

    Raises:
        ValueError: If it can't be known then which ones they are.
    """
    if value == "last":
        raise ValueError("positions can't be last: which token is the last one is not known when it passes")
    return read_positions(value)


def read_s3_uri(value: str) -> str:
    """Return a URI of S3 if it is one; what may hold credentials is not repeated.

    Raises:
        ValueError: If it is none.
    """
    if S3_URI_PATTERN.fullmatch(value):
        return value
    shown = "" if re.search(r"@|:(?!//)", value) else f", got {value!r}"
    raise ValueError(f"an S3 URI is s3://bucket or s3://bucket/prefix{shown}")


def read_endpoint(value: str | None) -> str | None:
    """Return the address of a service if it is one.

    Raises:
        ValueError: If it is none.
    """
    if value is None or ENDPOINT_PATTERN.fullmatch(value):
        return value
    raise ValueError("an endpoint is http://host or https://host, perhaps with a port and a path, without credentials")
