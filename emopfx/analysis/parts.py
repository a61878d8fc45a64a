"""A part of the analysis (statistics, probes, …): done once, and again only when what it depends on has changed."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from emopfx import __version__, hashing
from emopfx.analysis.schema import ActivationFiles, Saes, Sections
from emopfx.hashing import Json
from emopfx.layout import read_json, write_json
from emopfx.progress import say

RESULT = "result.json"


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: Its folder under artifacts/.
        inputs: All that its result depends on, but for the version of the code.
        compute: Makes its sections of the report, given its folder, where it may write files of its own.
    """

    name: str
    inputs: Json
    compute: Callable[[Path], Sections]


class _Kept(BaseModel):
    """What result.json holds."""

    inputs: str
    files: list[str]
    sections: Sections


def sections(part: Part, artifacts: Path) -> Sections:
    """Return a part's sections of report.json: the kept ones while its inputs are the same, else new ones.

    A part's result.json is written after all else in its folder, and names it: a part that was stopped, or has lost a
    file, is done again.
    """
    folder = artifacts / part.name
    inputs = hashing.digest([__version__, part.name, part.inputs])
    kept = _read(folder)
    if kept is not None and kept.inputs == inputs and all((folder / name).is_file() for name in kept.files):
        say(f"analyze: {part.name} is kept")
        return kept.sections
    say(f"analyze: {part.name} …")
    shutil.rmtree(folder, ignore_errors=True)
    found = part.compute(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(folder / RESULT, _Kept(inputs=inputs, files=files, sections=found).model_dump(mode="json"))
    return found


def _read(folder: Path) -> _Kept | None:
    try:
        return _Kept.model_validate(read_json(folder / RESULT))
    except ValidationError:
        return None


def join(first: Sections, second: Sections) -> Sections:
    """Return the sections of two parts together; both may know of unreadable activations, and of SAEs."""
    return Sections(
        statistics=second.statistics or first.statistics,
        activations=_joined_activations(first.activations, second.activations),
        probes=second.probes or first.probes,
        sae=_joined_saes(first.sae, second.sae),
    )


def _joined_activations(first: ActivationFiles | None, second: ActivationFiles | None) -> ActivationFiles | None:
    if first is None or second is None:
        return first or second
    return ActivationFiles(answers=second.answers, unreadable={**first.unreadable, **second.unreadable})


def _joined_saes(first: Saes | None, second: Saes | None) -> Saes | None:
    if first is None or second is None:
        return first or second
    return Saes(baseline=second.baseline, saes=[*first.saes, *second.saes], skipped=[*first.skipped, *second.skipped])
