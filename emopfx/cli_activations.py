"""The commands that keep activations in a bucket: push, pull, verify, ls, prune."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from typer.core import TyperCommand

from emopfx import config, record
from emopfx.cli_flags import RESULTS, Experiment, Results
from emopfx.errors import InputError
from emopfx.layout import Layout
from emopfx.record import Record

if TYPE_CHECKING:
    from emopfx.storage.s3 import Bucket

app = typer.Typer(help="Keep activations in S3, and bring them back.", no_args_is_help=True)

Uri = Annotated[str | None, typer.Option(help="s3://bucket/prefix; else the config's storage.s3.uri.")]
Endpoint = Annotated[str | None, typer.Option("--endpoint-url", help="Address of a service that is not AWS.")]
Bandwidth = Annotated[float | None, typer.Option(min=0.001, help="Most megabytes a second.")]
WithResults = Annotated[
    bool, typer.Option("--with-results", help="Results, reports and artifacts too; --results without a folder also.")
]


class _Moving(TyperCommand):
    """A command to which `--results` names the results folder, and without a folder asks to move results too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = [arg == "--results" and after.startswith("-") for arg, after in pairwise([*args, "-"])]
        spelled = ["--with-results" if alone else arg for arg, alone in zip(args, bare, strict=True)]
        return super().parse_args(ctx, spelled)


@app.command(cls=_Moving)
def push(
    name: Experiment,
    uri: Uri = None,
    endpoint_url: Endpoint = None,
    results: Results = RESULTS,
    with_results: WithResults = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over what has other content, or is another config's.")
    ] = False,
    delete_local: Annotated[
        bool, typer.Option("--delete-local", help="Delete the activations here once the bucket has them whole.")
    ] = False,
    bandwidth: Bandwidth = None,
) -> None:
    """Send what the bucket does not have yet."""
    # boto3 takes a while to import, and most commands don't need it.
    from emopfx.storage import push as pushing

    layout = _layout(results, name)
    if not layout.folder.is_dir():
        raise InputError(f"there is no experiment {name} in {results}")
    with _bucket(layout, uri, endpoint_url, bandwidth) as bucket, record.lock(layout):
        pushing.activations(layout, bucket, replace=replace, delete_local=delete_local, results_too=with_results)
        if with_results:
            pushing.results(layout, bucket, replace=replace)


@app.command(cls=_Moving)
def pull(
    name: Experiment,
    uri: Uri = None,
    endpoint_url: Endpoint = None,
    results: Results = RESULTS,
    with_results: WithResults = False,
    results_only: Annotated[
        bool, typer.Option("--results-only", help="No activations: analyze reads them from the bucket, piece by piece.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over what is here with other content, or of another config.")
    ] = False,
    variants: Annotated[str | None, typer.Option(help="Only these, with commas between them.")] = None,
    samples: Annotated[str | None, typer.Option(help="Only these sample ids, with commas between them.")] = None,
    layers: Annotated[str | None, typer.Option(help="Only these layers' bytes, as in 0,12.")] = None,
    bandwidth: Bandwidth = None,
) -> None:
    """Bring here what is not here yet, and check it."""
    from emopfx.storage import parallel
    from emopfx.storage import pull as pulling
    from emopfx.storage.results import refuse_other_config

    selection = pulling.Selection(_names("variants", variants), _names("samples", samples), _numbers(layers))
    if results_only and selection != pulling.Selection():
        raise InputError("--results-only takes no --variants, --samples and --layers: it brings no activations")
    layout = _layout(results, name)
    with _bucket(layout, uri, endpoint_url, bandwidth) as bucket:
        if (with_results or results_only) and not replace:
            parallel.patiently("pull", lambda: refuse_other_config(layout, bucket))
        if results_only:
            pulling.addresses(layout, bucket, replace=replace)
        else:
            pulling.activations(layout, bucket, selection, replace=replace)
        if with_results or results_only:
            pulling.results(layout, bucket, replace=replace)


@app.command()
def verify(
    name: Experiment,
    uri: Uri = None,
    endpoint_url: Endpoint = None,
    results: Results = RESULTS,
    read: Annotated[bool, typer.Option("--read", help="Read every object, and not only what S3 says of it.")] = False,
    bandwidth: Bandwidth = None,
) -> None:
    """Compare the bucket, and what is here, with the manifest's checksums."""
    from emopfx.storage import inventory

    layout = _layout(results, name)
    with _bucket(layout, uri, endpoint_url, bandwidth) as bucket:
        inventory.verify(layout, bucket, read=read)


@app.command()
def ls(
    name: Annotated[str | None, typer.Option(help="One experiment.")] = None,
    uri: Uri = None,
    endpoint_url: Endpoint = None,
    results: Results = RESULTS,
) -> None:
    """List the experiments in a bucket, or what it has of one."""
    from emopfx.storage import inventory

    layout = _layout(results, name) if name is not None else None
    with _bucket(layout, uri, endpoint_url) as bucket:
        if name is None:
            inventory.show_all(bucket, Console())
        else:
            inventory.show(bucket, name, Console())


@app.command()
def prune(
    name: Experiment,
    uri: Uri = None,
    endpoint_url: Endpoint = None,
    results: Results = RESULTS,
    older_than: Annotated[float, typer.Option(min=0, max=876_000, help="Leave alone what is younger, in hours.")] = 24,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list.")] = False,
) -> None:
    """Delete objects that no manifest entry names, and uploads that were never finished."""
    from emopfx.storage import inventory

    with _bucket(_layout(results, name), uri, endpoint_url) as bucket:
        inventory.prune(bucket, name, older_than=timedelta(hours=older_than), delete=yes)


def _layout(results: Path, name: str) -> Layout:
    """Return an experiment's folder, which its name can't lead out of."""
    if not re.fullmatch(config.NAME_PATTERN, name):
        raise InputError(f"--name must be 1 to 40 of a-z, 0-9 and - (not at its ends), got {name!r}")
    return Layout(results, name)


@contextmanager
def _bucket(
    layout: Layout | None, uri: str | None, endpoint_url: str | None, megabytes: float | None = None
) -> "Iterator[Bucket]":
    from emopfx.storage.s3 import Bucket

    if uri is None:
        recorded = _recorded(layout) if layout else None
        if recorded is None:
            raise InputError("say which bucket: --uri s3://bucket/prefix, or storage.s3.uri in the experiment's config")
        uri, endpoint_url = recorded.uri, endpoint_url or recorded.endpoint_url
    with Bucket(uri, endpoint_url, megabytes and megabytes * 1e6) as bucket:
        yield bucket


def _recorded(layout: Layout) -> config.S3 | None:
    """Return what the record of an experiment says of S3."""
    try:
        kept = Record.read(layout)
        return config.Storage.model_validate(kept.content["config"].get("storage", {})).s3 if kept else None
    except (KeyError, AttributeError, TypeError, ValidationError):
        raise InputError(f"{layout.record} is no record of an experiment; say which bucket: --uri s3://…") from None


def _names(flag: str, text: str | None) -> frozenset[str]:
    names = frozenset(part.strip() for part in (text or "").split(",") if part.strip())
    if text is not None and not names:
        raise InputError(f"--{flag} names nothing; leave it out to take all")
    return names


def _numbers(text: str | None) -> frozenset[int]:
    names = _names("layers", text)
    if not all(name.isdecimal() for name in names):
        raise InputError(f"--layers takes numbers with commas between them, as in 0,12, got {text!r}")
    return frozenset(int(name) for name in names)
