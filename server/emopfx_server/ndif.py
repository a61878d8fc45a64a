"""The request field ``ndif``, checked against the model and the activation root."""

import re
from pathlib import Path

import torch

from emopfx_server.engine.capture import CaptureSpec, layout_of, parse_range
from emopfx_server.engine.interventions import Edit
from emopfx_server.engine.model import LoadedModel, Site
from emopfx_server.engine.writer import ACTIVATIONS, METADATA
from emopfx_server.files import resolve_under
from emopfx_server.schemas import ApiError, CaptureDefaults, Intervention, Ndif
from emopfx_server.vectors import read_vector

# Leaves room for the root and the files' names in the 4,096 bytes that Linux allows.
_LONGEST_PATH = 1024
_RESERVED = frozenset({ACTIVATIONS, METADATA})
_SLICE = re.compile(r"(-?[0-9]{1,18})?:(-?[0-9]{1,18})?(?::(-?[0-9]{1,18})?)?")


def capture_folder(ndif: Ndif, request_id: str, root: Path) -> Path:
    """The folder that a request's files are to fill.

    Raises:
        ApiError: 400 when it is outside of the root, hidden, too long, named like the files, or can't be a folder of
            its own.
    """
    if request_id in _RESERVED:
        message = f"ndif.request_id {request_id!r} is the name of a file that the server writes; choose another."
        raise ApiError(400, message, param="ndif.request_id")
    if len(ndif.save_dir.encode()) > _LONGEST_PATH:
        raise ApiError(400, f"ndif.save_dir is longer than {_LONGEST_PATH:,} bytes in UTF-8.", param="ndif.save_dir")
    inside = f"{ndif.save_dir}/{request_id}" if ndif.per_request_subdir else ndif.save_dir
    folder = resolve_under(root, inside, param="ndif.save_dir")
    if any(part.startswith(".") or part in _RESERVED for part in folder.relative_to(root.resolve()).parts):
        raise ApiError(
            400,
            f"ndif.save_dir {ndif.save_dir!r} can't be used: no name in it may begin with a dot, or be one of the "
            f"server's files ({', '.join(sorted(_RESERVED))}).",
            param="ndif.save_dir",
        )
    if folder == root.resolve() or any(path.is_file() for path in (folder, *folder.parents)):
        raise ApiError(
            400,
            f"ndif.save_dir {ndif.save_dir!r} can't be a folder for this request's files; name a new one.",
            param="ndif.save_dir",
        )
    return folder


def capture_spec(ndif: Ndif, defaults: CaptureDefaults, loaded: LoadedModel) -> CaptureSpec | None:
    """What a request captures: its own wishes over the server's defaults, or None for nothing.

    Raises:
        ApiError: 400 for a layer, hook point or position that the model does not have.
    """
    capture = defaults.capture if ndif.capture is None else ndif.capture
    if not capture:
        return None
    layers = resolve_layers(defaults.layers if ndif.layers is None else ndif.layers, loaded.num_layers)
    sites = {
        _site(loaded, layer, hook_point, "ndif.hook_points")
        for layer in layers
        for hook_point in (ndif.hook_points or defaults.hook_points)
    }
    positions = ndif.positions or defaults.positions
    _check_positions(positions, "ndif.positions")
    name = ndif.dtype or defaults.dtype
    dtype = loaded.model.dtype if name == "model" else getattr(torch, name)
    return CaptureSpec(layout_of(frozenset(sites)), dtype, positions)


def _check_positions(positions: str | list[str], param: str) -> None:
    try:
        for text in positions if isinstance(positions, list) else []:
            start, stop = parse_range(text)
            if start >= stop:
                raise ValueError(f"{text!r:.40} is a range of no positions")
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}.", param=param) from error


def _site(loaded: LoadedModel, layer: int, hook_point: str, param: str) -> Site:
    site = loaded.sites[layer].get(hook_point)
    if site is None:
        raise ApiError(
            400,
            f"Layer {layer} of {loaded.name!r} has no hook point {hook_point!r}; it has "
            f"{', '.join(loaded.sites[layer])}.",
            param=param,
            code="unknown_hook_point",
        )
    return site


def resolve_layers(asked: str | list[int], count: int) -> list[int]:
    """The layers that ``all``, a list with negatives counted from the end, or a slice such as ``0:28:4`` name.

    Raises:
        ApiError: 400 when they are none of the model's ``count`` layers.
    """
    every = range(count)
    try:
        if asked == "all":
            return list(every)
        if isinstance(asked, str):
            match = _SLICE.fullmatch(asked)
            if match is None:
                raise ValueError
            start, stop, step = (int(part) if part else None for part in match.groups())
            found = list(every[start:stop:step])
        else:
            found = sorted({every[index] for index in asked})
    except (ValueError, IndexError) as error:
        raise _unknown_layers(asked, count) from error
    if not found:
        raise _unknown_layers(asked, count)
    return found


def _unknown_layers(asked: str | list[int], count: int) -> ApiError:
    return ApiError(
        400,
        f"ndif.layers {asked!r} are not layers of this model: it has {count}, numbered 0 to {count - 1}; give 'all', "
        "a list of numbers (negative ones count from the end), or a slice such as '0:28:4'.",
        param="ndif.layers",
        code="unknown_layer",
    )


def edits(ndif: Ndif, loaded: LoadedModel, root: Path) -> tuple[Edit, ...]:
    """The request's interventions, with their vectors read and on the model's device.

    Raises:
        ApiError: 400 for a layer, a hook point, positions or a vector that can't be.
    """
    return tuple(
        _edit(wish, f"ndif.interventions.{index}", loaded, root) for index, wish in enumerate(ndif.interventions)
    )


def _edit(wish: Intervention, param: str, loaded: LoadedModel, root: Path) -> Edit:
    count = loaded.num_layers
    if not -count <= wish.layer < count:
        raise ApiError(
            400,
            f"{param}.layer {wish.layer} is not a layer of this model: it has {count}, numbered 0 to {count - 1} "
            f"(or -{count} to -1).",
            param=f"{param}.layer",
            code="unknown_layer",
        )
    site = _site(loaded, wish.layer % count, wish.hook_point, f"{param}.hook_point")
    _check_positions(wish.positions, f"{param}.positions")
    scale = 1.0 if wish.scale is None else wish.scale
    if wish.vector is None:
        return Edit(wish.kind, site, wish.positions, scale)
    vector = read_vector(wish.vector, site, root, f"{param}.vector")
    operand = (vector.values * scale).to(loaded.model.dtype)
    if not operand.isfinite().all():
        raise ApiError(
            400, f"{param}: scale × vector has numbers too large for {loaded.dtype}.", param=f"{param}.scale"
        )
    return Edit(wish.kind, site, wish.positions, scale, vector, operand.to(loaded.model.device))
