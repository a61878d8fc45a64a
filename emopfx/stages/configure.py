"""Checks, before any answer is generated, that the server has what the config asks for."""

from emopfx.config import Capture, Experiment, Sae
from emopfx.errors import InputError
from emopfx.server_api import Structure


def configure(experiment: Experiment, structure: Structure) -> list[int]:
    """Check the config against the server's model.

    Returns:
        The numbers of the layers that are captured, empty if nothing is.

    Raises:
        InputError: If the server has another model, or the model lacks a layer, a hook point or room for answers.
    """
    _check_model(experiment, structure)
    context, longest = structure.raw["context_length"], experiment.generation.max_tokens
    if longest >= context:
        raise InputError(
            f"generation.max_tokens is {longest}, which leaves no room for the question in the context of "
            f"{structure.model} ({context} tokens)"
        )
    _check_interventions(experiment, structure)
    layers = []
    if experiment.capture.enabled:
        layers = resolve_layers(experiment.capture, structure.num_layers)
        _check_hook_points(experiment.capture, structure, layers)
    if experiment.analysis.sae:
        _check_sae(experiment.analysis.sae, experiment.capture, layers, structure.num_layers)
    return layers


def _check_model(experiment: Experiment, structure: Structure) -> None:
    asked = experiment.model
    if structure.model != asked.name:
        raise InputError(f"the server serves the model {structure.model}, but the config names {asked.name}")
    if asked.dtype != "auto" and structure.dtype != asked.dtype:
        raise InputError(f"the server computes in {structure.dtype}, but the config says model.dtype {asked.dtype}")
    if asked.revision is not None and structure.revision not in (None, asked.revision):
        raise InputError(f"the server serves revision {structure.revision}, but the config names {asked.revision}")


def _check_interventions(experiment: Experiment, structure: Structure) -> None:
    count = structure.num_layers
    places = {hook_point.name: hook_point.layers for hook_point in structure.hook_points}
    for variant in experiment.variants:
        for one in variant.interventions:
            where = f"variants.{variant.name}.interventions"
            if not -count <= one.layer < count:
                raise InputError(f"{where}: there is no layer {one.layer}, the model has 0 to {count - 1}")
            if one.hook_point not in places:
                raise InputError(
                    f"{where}: {structure.model} has no hook point {one.hook_point!r}; it has {', '.join(places)}"
                )
            having = places[one.hook_point]
            if having is not None and one.layer % count not in having:
                raise InputError(f"{where}: {one.hook_point!r} is not in layer {one.layer} of {structure.model}")


def _check_sae(sae: Sae, capture: Capture, captured: list[int], num_layers: int) -> None:
    if not captured:
        raise InputError("analysis.sae needs activations, but capture.enabled is false")
    for layer in sae.layers:
        if layer % num_layers not in captured or not -num_layers <= layer < num_layers:
            raise InputError(f"analysis.sae: layer {layer} is not captured; {', '.join(map(str, captured))} are")
    for name in sae.hook_points or []:
        if name not in capture.hook_points:
            raise InputError(f"analysis.sae: {name!r} is not captured; {', '.join(capture.hook_points)} are")


def resolve_layers(capture: Capture, num_layers: int) -> list[int]:
    """Return the layers that `capture.layers` names in a model of `num_layers` layers, in ascending order.

    Raises:
        InputError: If it names a layer that the model lacks, or none at all.
    """
    everything = range(num_layers)
    if capture.layers == "all":
        return list(everything)
    if isinstance(capture.layers, str):
        parts = [int(part) if part else None for part in capture.layers.split(":")]
        layers = [] if parts[2:] == [0] else sorted(everything[slice(*parts)])
        if not layers:
            raise InputError(f"capture.layers {capture.layers!r} names no layer of the model's {num_layers}")
        return layers
    for layer in capture.layers:
        if not -num_layers <= layer < num_layers:
            raise InputError(
                f"capture.layers: there is no layer {layer}, the model has 0 to {num_layers - 1} "
                f"(or -{num_layers} to -1)"
            )
    return sorted({layer % num_layers for layer in capture.layers})


def _check_hook_points(capture: Capture, structure: Structure, layers: list[int]) -> None:
    available = {hook_point.name: hook_point for hook_point in structure.hook_points}
    for name in capture.hook_points:
        if name not in available:
            raise InputError(
                f"capture.hook_points: {structure.model} has no hook point {name!r}; it has {', '.join(available)}"
            )
        having = available[name].layers
        lacking = [] if having is None else [layer for layer in layers if layer not in having]
        if lacking:
            raise InputError(f"capture.hook_points: {name!r} is not in layers {lacking} of {structure.model}")
