"""The command line: `emopfx run` and the single stages, and how to look at what they did."""

import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml

from emopfx import __version__, cli_activations, cli_results, config, config_file, status
from emopfx.cli_flags import (
    CHART,
    PATIENCE,
    RELEASE,
    RESULTS,
    Capture,
    Chart,
    Concurrency,
    DatasetPath,
    File,
    MaxTokens,
    ModelName,
    Name,
    Namespace,
    NewRevision,
    Patience,
    Probes,
    Release,
    Repeats,
    Results,
    Samples,
    Seed,
    Server,
    Stages,
    Target,
    Temperature,
    Values,
    Variants,
    Verify,
    in_cluster,
)
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout
from emopfx.progress import say
from emopfx.record import Record

if TYPE_CHECKING:
    from emopfx.run import Options

# What typer exits with on ctrl-C.
INTERRUPTED = 130

app = typer.Typer(
    help="Does the emotion in a prompt change how a language model reasons, and where does it show?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.add_typer(cli_results.app)
app.add_typer(cli_activations.app, name="activations")

# Flags of `run` that single stages do not have: several stages, and what is for a cluster.
ONLY_RUN = ("stages", "namespace", "release", "chart", "values", "patience")
# Flags and the key of the config that each one overrides.
KEYS = {
    "samples": "dataset.samples",
    "dataset": "dataset.path",
    "model": "model.name",
    "max_tokens": "generation.max_tokens",
    "temperature": "generation.temperature",
    "seed": "generation.seed",
    "repeats": "generation.repeats",
    "concurrency": "generation.concurrency",
    "capture": "capture.enabled",
}


@app.command()
def run(
    context: typer.Context,
    file: File = None,
    name: Name = None,
    samples: Samples = None,
    variants: Variants = None,
    model: ModelName = None,
    dataset: DatasetPath = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    repeats: Repeats = None,
    concurrency: Concurrency = None,
    capture: Capture = None,
    probes: Probes = False,
    stages: Stages = None,
    target: Target = "local",
    server: Server = None,
    results: Results = RESULTS,
    verify: Verify = False,
    new_revision: NewRevision = False,
    namespace: Namespace = None,
    release: Release = RELEASE,
    chart: Chart = CHART,
    values: Values = None,
    patience: Patience = PATIENCE,
) -> None:
    """Run the stages of an experiment; what is finished and whole is kept."""
    if in_cluster(target):
        _run_in_cluster(context.params)
        return
    # What samples takes a while to import, and most commands don't need it.
    from emopfx import run as runner

    experiment, given = _experiment(context.params)
    runner.run(experiment, given, _stages(stages) or list(experiment.stages), _options(context.params))


def _run_in_cluster(flags: dict[str, Any]) -> None:
    # Both take a while to import, and commands on this machine need neither.
    from emopfx import cluster_config, cluster_run
    from emopfx.kubernetes import kubeconfig
    from emopfx.targets.cluster import Deployment

    for flag in ("server", "verify"):
        if flags[flag]:
            raise InputError(f"--{flag} is for the target local")
    cluster = kubeconfig.connect(flags["namespace"])
    experiment, given = _experiment(flags, lambda name: cluster_config.config_of(cluster, name))
    own_values = config_file.read_yaml(flags["values"]) if flags["values"] else {}
    options = cluster_run.Options(
        flags["release"],
        Deployment(flags["chart"], own_values),
        flags["patience"],
        new_revision=flags["new_revision"],
    )
    cluster_run.run(cluster, experiment, given, _stages(flags["stages"]) or list(experiment.stages), options)


def _stage_command(stage: str, explanation: str) -> Callable[..., None]:
    def command(context: typer.Context, **flags: Any) -> None:
        if in_cluster(flags["target"]):
            raise InputError(f"on the target kubernetes, emopfx run --stages {stage} runs this stage")
        from emopfx import run as runner

        only_named = flags["name"] is not None and not (flags["file"] or flags["probes"] or _changes(flags))
        if stage == "analyze" and only_named:
            status.read(flags["results"], flags["name"])
            runner.analyze_recorded(Layout(flags["results"], flags["name"]))
            return
        experiment, given = _experiment(flags)
        if stage == "deploy":
            runner.serve(experiment, _options(flags))
        else:
            runner.run(experiment, given, [stage], _options(flags))

    # Typer reads a command's flags from its signature: they are those of `run` but for what only that can do.
    own = [item for item in inspect.signature(run).parameters.values() if item.name not in ONLY_RUN]
    command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    command.__doc__ = explanation
    return command


app.command("deploy")(_stage_command("deploy", "Run a server for an experiment until ctrl-C; other commands use it."))
app.command("configure")(_stage_command("configure", "Check that the server's model has what the config captures."))
app.command("generate")(_stage_command("generate", "Get the answers that are missing."))
app.command("analyze")(_stage_command("analyze", "Make the report from the answers that are there."))


@app.command()
def schema(
    report: Annotated[bool, typer.Option("--report", help="Of report.json, not of the config.")] = False,
) -> None:
    """Print the JSON Schema of the config."""
    from emopfx.analysis.schema import Report

    # A config may leave things out; a report has them all.
    found = Report.model_json_schema(mode="serialization") if report else config.Experiment.model_json_schema()
    typer.echo(json.dumps(found, indent=2))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _options(flags: dict[str, Any]) -> "Options":
    from emopfx.run import Options
    from emopfx.server_api import read_address

    server = flags["server"] and read_address(flags["server"])
    return Options(flags["results"], server, flags["verify"], flags["new_revision"])


def _changes(flags: dict[str, Any]) -> dict[str, Any]:
    """Return what the flags change, by dotted key of the config."""
    changes = {key: flags[flag] for flag, key in KEYS.items() if flags[flag] is not None}
    if flags["variants"] is not None:
        changes["variants"] = _split(flags["variants"])
    return changes


def _experiment(
    flags: dict[str, Any], recorded: Callable[[str], dict[str, Any]] | None = None
) -> tuple[config.Experiment, str]:
    """Return the experiment that the flags ask for, and the text to keep as experiment.yaml.

    Args:
        flags: The flags.
        recorded: Returns the config that a cluster has under a name; None if the experiment runs on this machine.
    """
    file, name, changes = flags["file"], flags["name"], _changes(flags)
    text = None
    if file is not None:
        text = config_file.read_text(file)
        raw, source = config_file.parse_yaml(text, str(file)), str(file)
    elif name is None:
        raise InputError("say which experiment: -f experiment.yaml or --name")
    elif recorded is not None:
        raw, source = recorded(name), f"{name} and the flags"
    else:
        old = Record.read(Layout(flags["results"], name))
        raw, source = (old.content["config"], str(old.layout.record)) if old else ({}, "the flags")
    if "variants" in changes:
        changes["variants"] = _own_variants(raw, changes["variants"])
    if name is not None and raw.get("name") != name:
        changes["name"] = name
    analysis = raw.get("analysis")
    if flags["probes"] and not (isinstance(analysis, Mapping) and analysis.get("probes")):
        changes["analysis.probes"] = {}
    merged = config_file.override(raw, changes)
    # A flag's path is one from here.
    folder = file.parent if file and flags["dataset"] is None else None
    experiment = config_file.parse(merged, source, folder, find_files=recorded is None)
    if text is not None and not changes:
        return experiment, text
    return experiment, yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)


def _own_variants(raw: dict[str, Any], names: list[str]) -> list[Any]:
    """Return the named variants, as the config defines them where it does."""
    listed = raw.get("variants")
    own = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    return [next((item for item in own if item.get("name") == name), name) for name in names]


def _stages(text: str | None) -> list[str]:
    stages = _split(text or "")
    allowed = f"allowed: {', '.join(config.STAGES)}"
    if text is not None and not stages:
        raise InputError(f"--stages names no stage; {allowed}")
    for stage in stages:
        if stage not in config.STAGES:
            raise InputError(f"--stages: there is no stage {stage!r}; {allowed}")
    return stages


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _stop(number: int, frame: FrameType | None) -> None:
    # In the background of a script, ctrl-C is ignored; SIGTERM never is.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 if it worked, 1 if it failed, 2 if asked wrongly, 130 if stopped."""
    # A pod or a job is ended by SIGTERM: stop in the same good order as on ctrl-C.
    signal.signal(signal.SIGTERM, _stop)
    try:
        app(arguments)
    except (InputError, RunError) as error:
        say(f"emopfx: {error}")
        sys.exit(2 if isinstance(error, InputError) else 1)
    except OSError as error:
        say(f"emopfx: {error.filename}: {error.strerror}" if error.filename else f"emopfx: {error}")
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("emopfx: stopped; what is finished is kept, and the same command goes on from there")
            if any(thread.name.startswith("s3-") for thread in threading.enumerate()):
                os._exit(INTERRUPTED)  # or Python would wait for them, and they for an answer
        raise
    sys.exit(0)


if __name__ == "__main__":
    main()
