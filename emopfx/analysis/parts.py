"""A part of the analysis (statistics, probes, …): done once, and again only when what it depends on has changed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from emopfx import __version__, hashing
from emopfx.hashing import Json
from emopfx.layout import read_json, write_json
from emopfx.progress import say

RESULT = "result.json"


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: The part's section of report.json, and its folder under artifacts/.
        inputs: All that its result depends on, but for the version of the code.
        compute: Makes the section, given the part's folder, where it may write files of its own.
    """

    name: str
    inputs: Json
    compute: Callable[[Path], BaseModel]


def section(part: Part, artifacts: Path) -> dict[str, Any]:
    """Return a part's section of report.json: the kept one while its inputs are the same, else a new one.

    A part's result.json is written after all else in its folder, so a part that was stopped is done again.
    """
    folder = artifacts / part.name
    inputs = hashing.digest([__version__, part.name, part.inputs])
    kept = read_json(folder / RESULT)
    if kept is not None and kept["inputs"] == inputs:
        say(f"analyze: {part.name} is kept")
    else:
        say(f"analyze: {part.name} …")
        kept = {"inputs": inputs, "section": part.compute(folder).model_dump(mode="json")}
        write_json(folder / RESULT, kept)
    found: dict[str, Any] = kept["section"]
    return found
