"""Runs the stages of an experiment in order, on a target, and keeps the record."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from emopfx import config, dataset, record, steering
from emopfx.analysis.tables import show
from emopfx.config import Experiment
from emopfx.errors import InputError
from emopfx.hashing import Json
from emopfx.layout import Layout, write_text
from emopfx.progress import say
from emopfx.record import Record
from emopfx.stages.analyze import analyze
from emopfx.targets import local


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what: nothing here changes a result.

    Attributes:
        results: The folder of all results.
        server: Address of a server to use in place of one of our own.
        verify: Whether finished activations are checked by checksum, not only by size.
        new_revision: Whether a changed config gets a folder of its own beside the old one.
    """

    results: Path
    server: str | None = None
    verify: bool = False
    new_revision: bool = False


def run(experiment: Experiment, given: str, stages: list[str], options: Options) -> None:
    """Run stages of an experiment; what is finished and whole is kept.

    Args:
        experiment: The config.
        given: The config as it was given (YAML), which is kept with the results.
        stages: The stages to run.
        options: How to run them.

    Raises:
        InputError: If the config, or what it names, is wrong.
        RunError: If a stage failed.
    """
    layout, identity = _locate(experiment, options)
    samples = dataset.load(experiment.dataset)
    with record.lock(layout):
        before = Record.read(layout)
        if before is None or before.hash != config.config_hash(identity):
            write_text(layout.config, given)
        chosen = {**experiment.dataset.model_dump(), "sample_ids": [sample.sample_id for sample in samples]}
        kept = Record.start(layout, experiment, identity, chosen, stages)
        target = local.LocalTarget(kept, experiment, samples, server=options.server, verify=options.verify)
        try:
            idle = "generate" in stages and not target.needs_server()
            for stage in config.STAGES:
                if stage not in stages:
                    continue
                with kept.stage(stage) as entry:
                    if idle and stage in ("deploy", "configure"):
                        entry["reason"] = "not needed: all samples are there"
                    else:
                        target.run(stage, entry)
        finally:
            target.close()
        if "generate" in stages or "analyze" in stages:
            _push(layout, experiment)


def serve(experiment: Experiment, options: Options) -> None:
    """Run a server for an experiment until interrupted; other commands find it through the results folder."""
    layout, _ = _locate(experiment, options)
    local.serve(experiment, layout)


def delete(root: Path, name: str) -> None:
    """Delete an experiment's results, activations and record, if it has any.

    Raises:
        InputError: If that is no name of an experiment.
        RunError: If a run is at work on it.
    """
    if not re.match(config.NAME_PATTERN, name):
        raise InputError(f"--name must be 1 to 40 of a-z, 0-9 and - (not at its ends), got {name!r}")
    layout, leaving = Layout(root, name), root / f".{name}.deleted"
    # All at once: a reader, or a call that comes after a crash, never sees half of it.
    shutil.rmtree(leaving, ignore_errors=True)
    if Record.read(layout) is None:
        say(f"there are no results of {name} in {root}")
        return
    with record.lock(layout):
        layout.folder.rename(leaving)
        shutil.rmtree(leaving)
    say(f"{layout.folder} is deleted")


def _push(layout: Layout, experiment: Experiment) -> None:
    """Send what there is to S3, if the config says so."""
    s3 = experiment.storage.s3
    if s3 and s3.push:
        # boto3 takes a while to import.
        from emopfx.storage import push

        push.everything(layout, s3)


def _locate(experiment: Experiment, options: Options) -> tuple[Layout, dict[str, Json]]:
    vectors = steering.checksums(experiment, options.results)
    identity = config.identity(experiment, dataset.fingerprint(experiment.dataset), vectors)
    layout = record.choose_folder(options.results, experiment, identity, new_revision=options.new_revision)
    return layout, identity


def analyze_recorded(layout: Layout) -> None:
    """Analyze the results in a folder as they are, without the dataset or a server.

    Raises:
        InputError: If there is no experiment in the folder.
    """
    kept = Record.read(layout)
    if kept is None:
        raise InputError(f"there is no experiment {layout.name} in {layout.root}")
    with record.lock(layout), kept.stage("analyze"):
        show(analyze(kept), Console())
        say(f"results are in {layout.folder}")
