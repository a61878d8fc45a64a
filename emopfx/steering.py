"""Interventions of variants: where their vectors lie, and how the server is told to make them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emopfx import hashing
from emopfx.config import Experiment, Intervention
from emopfx.errors import InputError
from emopfx.hashing import Json


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


def request(one: Intervention, name: str, root: Path) -> dict[str, Any]:
    """Return an intervention as the server takes it: its vector's path is relative to the folder of all results.

    Args:
        one: The intervention.
        name: The experiment's name.
        root: The folder of all results, which is the server's data folder.
    """
    fields: Mapping[str, Any] = one.model_dump(exclude_none=True)
    if one.vector is None or one.file is None:
        return dict(fields)
    return {**fields, "vector": locate(one.file, name, root) + one.vector.removeprefix(one.file)}


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
