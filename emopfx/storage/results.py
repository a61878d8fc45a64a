"""What an experiment's results are, and whose they are that a bucket has."""

import json
from pathlib import PurePath

from emopfx.errors import InputError
from emopfx.layout import Layout, read_json
from emopfx.storage.objects import Stored
from emopfx.storage.s3 import Bucket

# Of this machine alone, or (activations and their manifest) kept in a way of its own.
NO_RESULTS = ("activations", "activations_manifest.json", "server.log", "server.json")


def is_result(path: PurePath) -> bool:
    """Whether a file, named by its path under an experiment's folder, is one of its results."""
    parts = path.parts
    return bool(parts) and parts[0] not in NO_RESULTS and not any(part.startswith(".") for part in parts)


def record_key(layout: Layout) -> str:
    """Return the key of the experiment's record, which has its config hash."""
    return f"{layout.name}/{layout.record.name}"


def refuse_other_config(layout: Layout, bucket: Bucket) -> Stored | None:
    """Refuse to mix the results here with those of another config.

    Returns:
        The record that the bucket has, None if it has none.

    Raises:
        InputError: If the bucket's results are another config's.
        RunError: If S3 fails.
    """
    stored = bucket.stored(record_key(layout))
    here = (read_json(layout.record) or {}).get("hash")
    if stored is None or here is None:
        return stored
    try:
        there = json.loads(bucket.read(record_key(layout)))["hash"]
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        there = None
    if there != here:
        raise InputError(
            f"{bucket.uri(layout.name)} has results of another config (hash {there}, here {here}); "
            "choose another place, or --replace"
        )
    return stored
