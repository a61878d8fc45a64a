"""Vectors for interventions: given inline, or read from a safetensors file under the activation root."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from emopfx_server.engine.interventions import Vector
from emopfx_server.engine.model import Site
from emopfx_server.files import resolve_under
from emopfx_server.schemas import ApiError


def read_vector(given: str | list[float], site: Site, root: Path, param: str) -> Vector:
    """The vector that a request gives for a site.

    Args:
        given: Its numbers, or ``file.safetensors#tensor``; the tensor need not be named in a file that holds only one.
        site: Where it is used; it must be as wide.
        root: The activation root.
        param: The request field, for errors.

    Raises:
        ApiError: 400 when there is no such vector, or it doesn't fit.
    """
    if isinstance(given, list):
        _check_shape([len(given)], site, param)
        values = torch.tensor(given, dtype=torch.float32)
    else:
        values = _read(given, site, root, param)
    if not values.isfinite().all():
        raise _unusable(param, "it has numbers that are not finite in float32")
    return Vector("inline" if isinstance(given, list) else given, values)


def _read(given: str, site: Site, root: Path, param: str) -> torch.Tensor:
    relative, _, name = given.partition("#")
    path = resolve_under(root, relative, param=param)
    if not path.is_file():
        raise _unusable(param, f"there is no file {relative!r} in the server's data folder")
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if not name and len(names) == 1:
                name = names[0]
            if name not in names:
                raise _unusable(param, f"{given!r} names none of the file's tensors: {', '.join(names)}"[:1000])
            # Seen before it is read: it may be large.
            _check_shape(file.get_slice(name).get_shape(), site, param)
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor.float()
    except (OSError, SafetensorError) as error:
        raise _unusable(param, f"{relative!r} can't be read as safetensors ({error})") from error


def _check_shape(shape: list[int], site: Site, param: str) -> None:
    if shape != [site.width]:
        raise _unusable(param, f"its shape is {shape}, but {site.name} takes [{site.width}]")


def _unusable(param: str, reason: str) -> ApiError:
    return ApiError(400, f"{param} can't be used: {reason}.", param=param, code="unusable_vector")
