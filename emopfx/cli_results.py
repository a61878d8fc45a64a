"""The commands that look at experiments, bring their results here, or delete them; and `watch`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from emopfx import status
from emopfx.cli_flags import RELEASE, RESULTS, Experiment, Namespace, Release, Results, Server, Target, in_cluster
from emopfx.errors import InputError
from emopfx.layout import Layout
from emopfx.progress import say

if TYPE_CHECKING:
    from emopfx.kubernetes.api import Cluster
    from emopfx.server_api import ServerApi

app = typer.Typer()

RecordedRelease = Annotated[
    str | None, typer.Option("--release", help="Kubernetes: the Helm release; else the one of the run's record.")
]


@app.command("status")
def show_status(
    name: Annotated[str | None, typer.Option(help="One experiment.")] = None,
    target: Target = "local",
    results: Results = RESULTS,
    namespace: Namespace = None,
) -> None:
    """List the experiments, or the stages of one."""
    if in_cluster(target):
        from emopfx.kubernetes import status as cluster_status

        cluster = _connect(namespace)
        if name is None:
            cluster_status.show_all(cluster, Console())
        else:
            cluster_status.show(cluster, cluster_status.read(cluster, name), Console())
    elif name is None:
        status.show_all(results, Console())
    else:
        status.show(status.read(results, name), Console())


@app.command()
def monitor(
    name: Experiment, target: Target = "local", results: Results = RESULTS, namespace: Namespace = None
) -> None:
    """Follow a run until it has ended."""
    if in_cluster(target):
        from emopfx.kubernetes import follow

        follow.monitor(_connect(namespace), name)
    else:
        status.monitor(results, name)


@app.command()
def logs(
    name: Experiment,
    target: Target = "kubernetes",
    namespace: Namespace = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the Jobs have ended.")] = False,
) -> None:
    """Print what the Jobs of an experiment have printed."""
    if not in_cluster(target):
        raise InputError("emopfx run prints what it does; only Jobs of the target kubernetes have logs")
    from emopfx.kubernetes import follow as cluster_follow

    cluster_follow.show_logs(_connect(namespace), name, follow=follow)


@app.command()
def fetch(
    name: Experiment,
    target: Target = "local",
    server: Server = None,
    results: Results = RESULTS,
    namespace: Namespace = None,
    release: RecordedRelease = None,
) -> None:
    """Bring the results of an experiment here, but not its activations."""
    from emopfx.storage import download

    layout = Layout(results, name)
    with _server(layout, target, server, namespace, release) as api:
        count = download.fetch(api, layout)
    say(f"fetch: {count} files are in {layout.folder}")


@app.command()
def download_activations(
    name: Experiment,
    target: Target = "local",
    server: Server = None,
    results: Results = RESULTS,
    namespace: Namespace = None,
    release: RecordedRelease = None,
) -> None:
    """Bring the activations of an experiment here; goes on where it was stopped, and checks every checksum."""
    from emopfx.storage import download

    layout = Layout(results, name)
    with _server(layout, target, server, namespace, release) as api:
        count = download.activations(api, layout)
    say(f"download-activations: {count} files are whole in {layout.folder / 'activations'}")


@app.command()
def delete(
    name: Experiment,
    target: Target = "local",
    data: Annotated[bool, typer.Option("--data", help="Delete results and activations too.")] = False,
    results: Results = RESULTS,
    namespace: Namespace = None,
    release: RecordedRelease = None,
) -> None:
    """Delete the Jobs and the record of an experiment, and its results only with --data."""
    if in_cluster(target):
        from emopfx import cluster_config
        from emopfx.kubernetes import delete as cluster_delete

        cluster = _connect(namespace)
        cluster_config.refuse_to_delete(cluster, name)
        cluster_delete.delete(cluster, name, _release(cluster, name, release), data=data)
    elif not data:
        raise InputError("on this machine the record lies with the results; delete --data deletes both")
    else:
        from emopfx import run

        run.delete(results, name)


@app.command()
def watch(namespace: Namespace = None, release: Release = RELEASE) -> None:
    """Run every experiment.yaml that is applied as a ConfigMap labelled emopfx.dev/experiment, until ctrl-C."""
    from emopfx.watch import watch as watch_forever

    watch_forever(_connect(namespace), release)


def _connect(namespace: str | None) -> "Cluster":
    # Takes a while to import, and commands on this machine don't need it.
    from emopfx.kubernetes import kubeconfig

    return kubeconfig.connect(namespace)


def _release(cluster: "Cluster", name: str, given: str | None) -> str:
    from emopfx.kubernetes import configmap

    return given or configmap.release_of(cluster, name) or RELEASE


@contextmanager
def _server(
    layout: Layout, target: str, url: str | None, namespace: str | None, release: str | None
) -> "Iterator[ServerApi]":
    from emopfx.server_api import ServerApi
    from emopfx.targets import local

    if url is None and in_cluster(target):
        from emopfx.kubernetes import portforward

        cluster = _connect(namespace)
        with portforward.server(cluster, _release(cluster, layout.name, release)) as api:
            yield api
        return
    address = url or local.deployed_url(layout)
    if address is None:
        raise InputError(f"say where the server is: --server http://…, or --target kubernetes (for {layout.name})")
    with ServerApi(address) as api:
        yield api
