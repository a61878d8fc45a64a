"""Opens the activations that a manifest names, without the answers they belong to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from emopfx.analysis.activation_file import METADATA, Readable, Wanted, read_metadata, wanted
from emopfx.analysis.activations import Activations
from emopfx.errors import InputError
from emopfx.layout import Layout
from emopfx.progress import Progress
from emopfx.safetensors_header import BrokenError
from emopfx.storage import manifest
from emopfx.storage.manifest import Entry, Manifest
from emopfx.storage.s3 import Bucket
from emopfx.storage.source import PushedFiles

# No file lies under it.
NOWHERE = Path(os.devnull)


@contextmanager
def open_manifest(place: str, endpoint_url: str | None = None) -> Iterator[Activations]:
    """Open the activations of an activations_manifest.json.

    Args:
        place: Its path, or its address in a bucket (s3://bucket/prefix/experiment/activations_manifest.json).
        endpoint_url: Address of the S3 service, if it is not AWS or is not named by boto3's own settings.

    Raises:
        InputError: If there is no such manifest.
        RunError: If S3 fails.
    """
    if place.startswith("s3://"):
        root, name, _ = place.rsplit("/", 2)
        layout = Layout(NOWHERE, name)
        with Bucket(root, endpoint_url) as bucket:
            remote = manifest.read_remote(bucket, name)
            if remote is None:
                raise InputError(f"there is no activations_manifest.json in {bucket.uri(name)}")
            entries = {key: manifest.in_bucket(entry, bucket) for key, entry in remote.items()}
    else:
        folder = Path(place).resolve().parent
        layout = Layout(folder.parent, folder.name)
        entries = manifest.read(layout)
    with PushedFiles(layout, endpoint_url, entries) as source:
        yield _open(source, entries)


def _open(source: Readable, entries: Manifest) -> Activations:
    samples = {key: partial(_wanted, source, entry) for key, entry in entries.items()}
    with Progress("activations", len(samples)) as progress:
        return Activations.open(source, samples, progress.advance)


def _wanted(source: Readable, entry: Entry) -> Wanted:
    try:
        record = read_metadata(source, entry["save_dir"])
        return wanted(entry, int(record["prompt_tokens"]), int(record["completion_tokens"]))
    except (KeyError, TypeError, ValueError):
        raise BrokenError(f"the manifest or {METADATA} doesn't say how long prompt and answer are") from None
