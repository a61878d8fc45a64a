"""Sends activations and results to a bucket; what is there already, and whole, is not sent again."""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emopfx.config import S3
from emopfx.errors import RunError
from emopfx.layout import Layout
from emopfx.progress import say
from emopfx.storage import manifest, parallel
from emopfx.storage.courier import Courier
from emopfx.storage.manifest import Manifest
from emopfx.storage.results import is_result, record_key, refuse_other_config
from emopfx.storage.s3 import Bucket
from emopfx.storage.s3_errors import Away, Taken
from emopfx.storage.sender import Sender


def activations(
    layout: Layout, bucket: Bucket, *, replace: bool = False, delete_local: bool = False, results_too: bool = False
) -> None:
    """Send the activations that the manifest names, then the manifest, whose entries now carry their URI.

    Args:
        layout: The experiment.
        bucket: Where to.
        replace: Whether objects with other content are written over.
        delete_local: Whether the files here are deleted after the bucket has said that it has them whole.
        results_too: Whether results are to follow (see `results`): nothing is sent if they could not.

    Raises:
        InputError: If there is no manifest, or the bucket has an experiment of that name and another config.
        RunError: If something is not there in the end; the message lists it.
    """
    here = manifest.read(layout)
    entries = {key: entry for key, entry in here.items() if "layers" not in entry}
    if partial := len(here) - len(entries):
        say(f"push: {partial} of {len(here)} requests are here by some of their layers only, and are not sent")
    folder, where = f"{layout.name}/activations/", f"are not in {bucket.root}"
    with parallel.all_or_listed("push", entries, where):
        if results_too and not replace:
            parallel.patiently("push", lambda: refuse_other_config(layout, bucket))
        parallel.patiently("push", lambda: manifest.merged_into(bucket, layout.name, entries, replace=replace))
        there = parallel.patiently("push", lambda: {listed.key for listed in bucket.list(folder)})
    sender = Sender(bucket, layout.root, there, replace=replace)
    failures = parallel.for_each("push-activations", entries, sender.send_entry, bucket.traffic)
    whole = {
        key: manifest.in_bucket(entry, bucket, sender.checksums)
        for key, entry in entries.items()
        if key not in failures
    }
    manifest.update(layout, whole)
    unnamed = _publish(layout.name, bucket, whole, replace=replace)
    # Where files are missing, the next run is to name those that are there too.
    failures = failures or unnamed
    if not failures:
        _drop_leftovers(bucket, folder, {path for entry in whole.values() for path, _ in manifest.paths(entry)})
    say(f"push: {len(sender.sent)} files sent, {len(sender.kept)} were there")
    parallel.report("push", failures, len(entries), where)
    if delete_local:
        failures = parallel.for_each("delete-local", whole, sender.delete_entry, bucket.traffic)
        parallel.report("delete-local", failures, len(whole), "are kept here")


def _publish(name: str, bucket: Bucket, whole: Manifest, *, replace: bool) -> dict[str, str]:
    """Put entries into the bucket's manifest; return why they are not there."""
    try:
        parallel.patiently("push", lambda: manifest.publish(bucket, name, whole, replace=replace))
    except RunError as error:
        return dict.fromkeys(whole, f"its files are there, but the bucket's manifest does not name it: {error}")
    return {}


def _drop_leftovers(bucket: Bucket, folder: str, keys: Set[str]) -> None:
    """Give up uploads that were broken off of what is there now; a later push tries what fails."""
    with suppress(RunError):
        bucket.delete([listed for listed in bucket.unfinished(folder) if listed.key in keys])


def results(layout: Layout, bucket: Bucket, *, replace: bool = False) -> None:
    """Send everything else of an experiment: config, record, answers, reports and artifacts.

    Args:
        layout: The experiment.
        bucket: Where to.
        replace: Whether results of another config are written over.

    Raises:
        InputError: If the bucket has results of another config.
        RunError: If something is not there in the end; the message lists it.
    """
    paths = {str(path.relative_to(layout.root)): path for path in _result_files(layout)}
    where = f"are not in {bucket.root}"
    with parallel.all_or_listed("push-results", paths, where):
        parallel.patiently("push-results", lambda: _claim(layout, bucket, replace=replace))
        there = parallel.patiently("push-results", lambda: {one.key for one in bucket.list(f"{layout.name}/")})
    sender = Sender(bucket, layout.root, there, replace=True)
    failures = parallel.for_each("push-results", paths, sender.send_result, bucket.traffic)
    if not failures:
        _drop_leftovers(bucket, f"{layout.name}/", paths.keys())
    say(f"push-results: {len(sender.sent)} files sent, {len(sender.kept)} were there")
    parallel.report("push-results", failures, len(paths), where)


def _claim(layout: Layout, bucket: Bucket, *, replace: bool) -> None:
    """Send the record first: of two who push different configs at once, the later one sees it."""
    if replace or not layout.record.exists() or refuse_other_config(layout, bucket):
        return
    try:
        bucket.put_bytes(layout.record.read_bytes(), record_key(layout))
    except Taken:
        refuse_other_config(layout, bucket)


def everything(layout: Layout, s3: S3) -> None:
    """Send all that an experiment has to the bucket of its config.

    Raises:
        InputError: As `activations` and `results` do.
        RunError: As `activations` and `results` do.
    """
    with Bucket(s3.uri, s3.endpoint_url) as bucket:
        activations(layout, bucket)
        results(layout, bucket)


@contextmanager
def continuous(layout: Layout, s3: S3) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Send each request's files as soon as they are there, if the config says `continuous`.

    What fails, or is not sent at the end, is left to `everything`.

    Yields:
        What is to be called with each entry.
    """
    if s3.push != "continuous":
        yield lambda entry: None
        return
    with Bucket(s3.uri, s3.endpoint_url) as bucket, Courier(bucket, layout) as courier:
        yield courier.take


def check(layout: Layout, s3: S3, request_ids: dict[str, str]) -> None:
    """Refuse what could not be pushed in the end, before it is made; a service that is away may be back by then.

    Args:
        layout: The experiment.
        s3: Where it is to be pushed.
        request_ids: By key, the requests that are to be made.

    Raises:
        InputError: If the bucket has an experiment of that name and another config.
        RunError: If there is no such bucket, or it can't be used with these credentials.
    """
    try:
        with Bucket(s3.uri, s3.endpoint_url) as bucket:
            before = manifest.read_remote(bucket, layout.name) or {}
            manifest.refuse_others(before, request_ids, bucket.uri(layout.name))
            refuse_other_config(layout, bucket)
    except Away as error:
        say(f"push: {error}; what is made now stays here until it can be pushed")


def _result_files(layout: Layout) -> Iterator[Path]:
    for path in sorted(layout.folder.rglob("*")):
        if path.is_file() and is_result(path.relative_to(layout.folder)):
            yield path
