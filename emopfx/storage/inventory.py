"""What a bucket has of an experiment: whether it is whole, how much it is, and what is there in vain."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emopfx.config import S3
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout
from emopfx.progress import say
from emopfx.storage import files, manifest, parallel
from emopfx.storage.manifest import Entry, Manifest
from emopfx.storage.objects import Listed
from emopfx.storage.s3 import Bucket


def verify(layout: Layout, bucket: Bucket, *, read: bool = False) -> None:
    """Compare what is in a bucket, its own manifest, and what is here, with the manifest's sizes and checksums.

    Args:
        layout: The experiment.
        bucket: The bucket.
        read: Whether all objects are read and hashed; otherwise only those of which the bucket has no checksum of its
            own, as it compares it when they are written.

    Raises:
        InputError: If there is no manifest here or there.
        RunError: If something is missing or has other content; the message names each.
    """
    here = manifest.here(layout)
    remote = parallel.patiently("verify", lambda: manifest.read_remote(bucket, layout.name))
    if remote is None and not here:
        raise InputError(f"there are no activations of {layout.name}, neither in {layout.folder} nor in {bucket.root}")
    there = remote or {}
    entries = {**there, **here}

    def check(key: str) -> None:
        problems = [
            *_problems_there(bucket, entries[key], read=read, strict=True),
            *_problems_listed(bucket, entries[key], there.get(key)),
            *_problems_here(layout.root, here.get(key)),
        ]
        if problems:
            raise RunError("; ".join(problems))

    failures = parallel.for_each("verify", {key: key for key in entries}, check, bucket.traffic)
    if failures:
        lines = "\n".join(f"  {key}: {reason}" for key, reason in failures.items())
        raise RunError(f"verify: {len(failures)} of {len(entries)} requests are not whole:\n{lines}")
    local = sum(files.is_here(layout.root, entry["save_dir"]) for entry in here.values())
    say(f"verify: {len(entries)} requests are whole in {bucket.root}, {local} of them are here too")


def whole_elsewhere(layout: Layout, s3: S3 | None) -> set[str]:
    """Return the `save_dir` of each request that is not here as a whole, but where its manifest entry says that it is.

    Args:
        layout: The experiment.
        s3: What its config says of S3: the address of the service of entries that don't name theirs.

    Raises:
        RunError: If S3 can't be asked.
    """
    places: dict[tuple[str, str | None], Manifest] = {}
    for key, entry in manifest.here(layout).items():
        if entry["uri"] and ("layers" in entry or not files.is_here(layout.root, entry["save_dir"])):
            address = entry.get("endpoint_url", s3.endpoint_url if s3 else None)
            places.setdefault((manifest.root(entry), address), {})[key] = entry
    whole: set[str] = set()
    for (root, address), entries in places.items():
        with Bucket(root, address) as bucket:

            def check(entry: Entry, bucket: Bucket = bucket) -> None:
                if not any(_problems_there(bucket, entry)):
                    whole.add(entry["save_dir"])

            failures = parallel.for_each("verify", entries, check, bucket.traffic)
            if failures:
                raise RunError(f"can't tell what {root} has: {next(iter(failures.values()))}")
    return whole


def _problems_there(bucket: Bucket, entry: Entry, *, read: bool = False, strict: bool = False) -> Iterator[str]:
    for path, file in manifest.paths(entry):
        stored = bucket.stored(path)
        checksum = manifest.checksum_there(entry, file)
        problem = bucket.problem(path, stored, file["bytes"], file["sha256"], checksum=checksum, strict=strict)
        if problem is None and read and bucket.sha256(path, file["bytes"]) != file["sha256"]:
            problem = f"{bucket.uri(path)} has other content than its checksum says"
        if problem:
            yield problem


def _problems_listed(bucket: Bucket, entry: Entry, listed: Entry | None) -> Iterator[str]:
    if listed is None:
        yield f"the manifest in {bucket.root} does not name it"
    elif manifest.paths(listed) != manifest.paths(entry):
        yield f"the manifest in {bucket.root} names other files"


def _problems_here(root: Path, entry: Entry | None) -> Iterator[str]:
    # What was deleted here after a push, or never pulled as a whole, is no problem.
    if entry and files.is_here(root, entry["save_dir"]):
        problem = files.problem(manifest.as_here(entry), root, None, checksums=True)
        if problem:
            yield problem


def show(bucket: Bucket, name: str, console: Console) -> None:
    """Print, by variant, how many requests the bucket's manifest has, and how much of them is there.

    Raises:
        InputError: If the bucket has no such experiment.
    """
    entries = parallel.patiently("ls", lambda: manifest.read_remote(bucket, name))
    if entries is None:
        raise InputError(f"{bucket.root} has no activations of {name}; emopfx activations ls lists what it has")
    listed = parallel.patiently("ls", lambda: list(bucket.list(f"{name}/activations/")))
    sizes = {item.key: item.bytes for item in listed}
    table = Table("variant", "requests", "complete", "bytes", title=escape(bucket.uri(name)), box=box.SIMPLE_HEAD)
    for variant in dict.fromkeys(key.split("/")[0] for key in entries):
        found = [entry for key, entry in entries.items() if key.split("/")[0] == variant]
        complete = sum(all(sizes.get(path) == file["bytes"] for path, file in manifest.paths(e)) for e in found)
        amount = sum(sizes.get(path, 0) for entry in found for path, _ in manifest.paths(entry))
        table.add_row(escape(variant), str(len(found)), str(complete), f"{amount:,}")
    console.print(table)


def show_all(bucket: Bucket, console: Console) -> None:
    """Print the experiments that are in a bucket."""
    for name in parallel.patiently("ls", lambda: list(bucket.folders())):
        console.print(bucket.uri(name), markup=False, soft_wrap=True)


def prune(bucket: Bucket, name: str, *, older_than: timedelta, delete: bool) -> None:
    """Find, and perhaps delete, what is in vain: activations that no manifest entry names, and unfinished uploads.

    Args:
        bucket: The bucket.
        name: The experiment.
        older_than: What is younger is left alone, as somebody may be about to push the rest.
        delete: Whether to delete; otherwise it is only listed.

    Raises:
        InputError: If the bucket has no such experiment.
        RunError: If S3 fails.
    """
    if parallel.patiently("prune", lambda: manifest.read_remote(bucket, name)) is None:
        raise InputError(f"{bucket.root} has no activations of {name}")
    folder, latest = f"{name}/activations/", datetime.now(UTC) - older_than
    everything: list[Listed] = parallel.patiently(
        "prune", lambda: [*bucket.list(folder), *bucket.unfinished(f"{name}/")]
    )
    # Read after the listing: what was pushed in between is named by then.
    entries = parallel.patiently("prune", lambda: manifest.read_remote(bucket, name)) or {}
    named = {path for entry in entries.values() for path, _ in manifest.paths(entry)}
    vain = [item for item in everything if (item.upload_id or item.key not in named) and item.changed <= latest]
    for item in vain:
        kind = "unfinished upload" if item.upload_id else f"{item.bytes} bytes"
        say(f"prune: {bucket.uri(item.key)} ({kind})")
    if delete:
        bucket.delete(vain)
        say(f"prune: {len(vain)} deleted")
    else:
        say(f"prune: {len(vain)} could be deleted; --yes does it")
