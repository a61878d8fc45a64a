"""Interventions of variants: where their vectors lie, and how the server is told to make them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emopfx import hashing
from emopfx.config import Experiment, Intervention
from emopfx.errors import InputError
from emopfx.hashing import Json

LARGEST_HEADER = 100_000_000


def checksums(experiment: Experiment, root: Path) -> dict[str, Json]:
    """Return the SHA-256 of every vector file that the config names, by the path as given.

    Args:
        experiment: The config.
        root: The folder of all results.

    Raises:
        InputError: If there is no such file.
    """
    files = [one.file for variant in experiment.variants for one in variant.interventions if one.file]
    return {file: hashing.file_sha256(root / locate(file, experiment.name, root)) for file in files}


def request(one: Intervention, name: str, root: Path, num_layers: int | None = None) -> dict[str, Any]:
    """Return an intervention as the server takes it: its vector's path is relative to the folder of all results.

    Args:
        one: The intervention.
        name: The experiment's name.
        root: The folder of all results, which is the server's data folder.
        num_layers: How many layers the model has, where that is known: a layer may be counted from the end.

    Raises:
        InputError: If its vector is not there, or it is not clear which one is meant.
    """
    fields: Mapping[str, Any] = one.model_dump(exclude_none=True)
    if one.vector is None or one.file is None:
        return dict(fields)
    file = locate(one.file, name, root)
    tensor = one.vector.partition("#")[2] or _tensor(root / file, one, num_layers)
    return {**fields, "vector": f"{file}#{tensor}"}


def _tensor(path: Path, one: Intervention, num_layers: int | None) -> str:
    """Return which of a file's tensors is meant where none is named: the intervention's own place's, or the only one.

    Raises:
        InputError: If it is neither, or the file is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(LARGEST_HEADER, int.from_bytes(file.read(8), "little"))))
        names = [name for name in header if name != "__metadata__"]
    except (OSError, ValueError, TypeError, RecursionError):
        raise InputError(f"variants: {path} is no safetensors file") from None
    layer = one.layer % num_layers if num_layers else one.layer
    own = f"layers.{layer}.{one.hook_point}"
    if own in names or len(names) == 1:
        return own if own in names else names[0]
    raise InputError(f"variants: {path} has no {own}; name one of its tensors behind a #: {', '.join(names)}")


def locate(file: str, name: str, root: Path) -> str:
    """Return where a vector file lies, relative to the folder of all results.

    It is looked for in the experiment's own folder first, then among all results, where other experiments are.

    Raises:
        InputError: If it is in neither, or outside.
    """
    candidates = [f"{name}/{file}", file]
    for candidate in candidates:
        path = (root / candidate).resolve()
        if path.is_file() and path.is_relative_to(root.resolve()):
            return candidate
    looked = " nor ".join(str(root / candidate) for candidate in candidates)
    raise InputError(f"variants: there is no vector file {looked}")
