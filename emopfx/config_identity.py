"""What in a config can change a result, its hash, and what differs between two configs."""

from collections.abc import Mapping
from typing import Any

from emopfx import __version__, hashing, variants
from emopfx.config import Experiment
from emopfx.hashing import Json


def identity(
    experiment: Experiment, dataset: Json, vectors: Json = None, model_files: Mapping[str, Json] | None = None
) -> dict[str, Json]:
    """Return everything that can change a result, the content of the config hash.

    Args:
        experiment: The config. Its concurrency, failure limit, analysis, storage and stages change no answer.
        dataset: What identifies the questions (see `dataset.fingerprint`).
        vectors: What identifies the vector files' content (see `steering.checksums`), None where they can't be read.
        model_files: What identifies the files of a model that is a folder, by name.
    """
    sampling = experiment.generation.model_dump(exclude={"concurrency", "max_failures"})
    return {
        "model": {**experiment.model.model_dump(), **({"files": model_files} if model_files else {})},
        "dataset": dataset,
        "generation": sampling,
        "instruction": variants.INSTRUCTION,
        "variants": {variant.name: list(variant.prefixes) for variant in experiment.variants},
        "interventions": {
            variant.name: [one.model_dump() for one in variant.interventions]
            for variant in experiment.variants
            if variant.interventions
        },
        "vectors": vectors,
        "capture": experiment.capture.model_dump(),
        "code_version": __version__,
    }


def config_hash(identified: Mapping[str, Json]) -> str:
    """Return the config hash of what `identity` returned."""
    return hashing.digest(dict(identified))


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what differs between two identities: lines of the form "key: old → new"."""
    before, after = _flatten(old), _flatten(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {_short(before, key)} → {_short(after, key)}" for key in keys]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _short(flat: Mapping[str, Any], key: str) -> str:
    if key not in flat:
        return "(none)"
    text = str(flat[key])
    return text if len(text) <= 60 else f"{text[:57]}…"
