"""Directions in activation space, as files that an intervention can name."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from emopfx.analysis.activation_file import Site
from emopfx.layout import commit


def save(path: Path, vectors: Mapping[Site, npt.NDArray[np.float32]], about: Mapping[str, object]) -> None:
    """Write directions, one tensor `[width]` per site under the site's name, so that a file is there whole or not.

    Args:
        path: A .safetensors file.
        vectors: The directions.
        about: What they are; goes into the file's metadata, as JSON where it isn't text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    save_file({site.name: np.ascontiguousarray(vector) for site, vector in vectors.items()}, temporary, texts)
    temporary.chmod(0o644)  # safetensors writes for its owner alone; the server may run as another user
    commit(temporary, path)
