"""The command line's flags, as they are shared by its commands."""

from pathlib import Path
from typing import Annotated

import typer

from emopfx import config
from emopfx.errors import InputError

TARGETS = ("local", "kubernetes")


def _read_results(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--results: {folder} is not a folder")
    return folder


File = Annotated[Path | None, typer.Option("-f", "--file", help="The experiment's config (YAML).")]
Name = Annotated[str | None, typer.Option(help="Names the results folder; without -f, goes on with what is there.")]
Samples = Annotated[int | None, typer.Option(help="How many questions.")]
Variants = Annotated[str | None, typer.Option(help="Names of variants, with commas between them.")]
ModelName = Annotated[str | None, typer.Option(help="Hugging Face id, path, tiny, or random:CONFIG.")]
DatasetPath = Annotated[str | None, typer.Option(help="Hugging Face id, or a .jsonl or .parquet file.")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of one answer.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the answers.")]
Repeats = Annotated[int | None, typer.Option(help="Answers to each question in each variant.")]
Concurrency = Annotated[int | None, typer.Option(help="Requests in flight at once.")]
Capture = Annotated[bool | None, typer.Option("--capture/--no-capture", help="Keep hidden activations.")]
Probes = Annotated[bool, typer.Option("--probes", help="Probe the activations, as analysis.probes: {} does.")]
Stages = Annotated[str | None, typer.Option(help=f"Stages, with commas between them: {', '.join(config.STAGES)}.")]
Target = Annotated[str, typer.Option(help=f"Where the stages run: {' or '.join(TARGETS)}.")]
Server = Annotated[str | None, typer.Option(help="Address of a server to use; else one is started.")]
Results = Annotated[Path, typer.Option(callback=_read_results, help="Folder of all results, and of the server's data.")]
Verify = Annotated[bool, typer.Option("--verify", help="Check finished activations by checksum, not only by size.")]
NewRevision = Annotated[bool, typer.Option("--new-revision", help="Keep results of an older config beside new ones.")]

Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Kubernetes: the namespace; else the kubeconfig's.")
]
Release = Annotated[str, typer.Option(help="Kubernetes: the Helm release.")]
Chart = Annotated[str, typer.Option(help="Kubernetes: the chart that deploy installs, a folder or an address.")]
Values = Annotated[Path | None, typer.Option("--values", help="Kubernetes: values of the chart (YAML) for deploy.")]
Patience = Annotated[float, typer.Option("--timeout", help="Kubernetes: seconds to wait for the server.")]
Experiment = Annotated[str, typer.Option("--name", help="The experiment.")]
RESULTS = Path("results")
RELEASE = "emopfx"
CHART = "charts/emopfx"
PATIENCE = 3600.0


def in_cluster(target: str) -> bool:
    """Whether a target is a cluster.

    Raises:
        InputError: If there is no such target.
    """
    if target not in TARGETS:
        raise InputError(f"--target: there is no target {target!r}; allowed: {', '.join(TARGETS)}")
    return target == "kubernetes"
