"""Runs the stages of an experiment in order, on a target, and keeps the record."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from emopfx import config, config_identity, dataset, hashing, record, steering
from emopfx.analysis.tables import show
from emopfx.config import Experiment
from emopfx.errors import InputError, RunError
from emopfx.hashing import Json
from emopfx.layout import Layout, write_text
from emopfx.progress import say
from emopfx.record import Record
from emopfx.stages.analyze import analyze
from emopfx.targets import local
from emopfx.units import Unit, plan

# Of a model's large files.
PARTS, PART_BYTES = 32, 1 << 16


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
    identity = _identity(experiment, options.results)
    with record.hold(options.results, experiment, identity, new_revision=options.new_revision) as layout:
        samples = dataset.load(experiment.dataset)
        before = Record.read(layout)
        if before is None or before.hash != config_identity.config_hash(identity):
            write_text(layout.config, given if layout.name == experiment.name else _renamed(given, layout.name))
        chosen = {**experiment.dataset.model_dump(), "sample_ids": [sample.sample_id for sample in samples]}
        kept = Record.start(layout, experiment, identity, chosen, stages)
        _check_bucket(layout, experiment, stages, plan(experiment, samples, kept.hash))
        target = local.LocalTarget(kept, experiment, samples, server=options.server, verify=options.verify)
        with _pushed(layout, experiment, stages):
            _run(target, kept, stages)


def _run(target: local.LocalTarget, kept: Record, stages: list[str]) -> None:
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


def serve(experiment: Experiment, options: Options) -> None:
    """Run a server for an experiment until interrupted; other commands find it through the results folder."""
    identity = _identity(experiment, options.results)
    layout = record.choose_folder(options.results, experiment, identity, new_revision=options.new_revision)
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


def _check_bucket(layout: Layout, experiment: Experiment, stages: list[str], units: list[Unit]) -> None:
    """Refuse to generate what could not be pushed in the end, if the config says that it is to be."""
    s3 = experiment.storage.s3
    if s3 and s3.push and "generate" in stages:
        # boto3 takes a while to import.
        from emopfx.storage import push

        captured = units if experiment.capture.enabled else []
        push.check(layout, s3, {unit.key: unit.request_id for unit in captured})


@contextmanager
def _pushed(layout: Layout, experiment: Experiment, stages: list[str]) -> Iterator[None]:
    """Send what there is to S3 once the stages have ended, however they did, if the config says so."""
    s3 = experiment.storage.s3
    if not (s3 and s3.push) or not {"generate", "analyze"} & set(stages):
        yield
        return
    from emopfx.storage import push

    try:
        yield
    except BaseException:
        # Why the stages ended is worth more than why what there is can't be sent.
        try:
            if layout.manifest.exists():
                push.everything(layout, s3)
        except (InputError, RunError) as error:
            say(str(error))
        raise
    push.everything(layout, s3)


def _renamed(given: str, name: str) -> str:
    """Return a config as it was given, under another name."""
    return yaml.safe_dump({**yaml.safe_load(given), "name": name}, sort_keys=False, allow_unicode=True)


def _identity(experiment: Experiment, root: Path) -> dict[str, Json]:
    questions, vectors = dataset.fingerprint(experiment.dataset), steering.checksums(experiment, root)
    return config_identity.identity(experiment, questions, vectors, _model_files(experiment.model.name))


def _model_files(name: str) -> dict[str, Json]:
    """Return what identifies the files of a model that is a folder on this machine, by name."""
    folder = Path(name)
    if name == "tiny" or not folder.is_dir():
        return {}
    return {path.name: _file_identity(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _file_identity(path: Path) -> str:
    """Return a digest of a file; of a large one only of its size and of parts all over it, as weights take minutes."""
    size = path.stat().st_size
    if size <= PARTS * PART_BYTES:
        return hashing.file_sha256(path)
    sha = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for part in range(PARTS):
            file.seek((size - PART_BYTES) * part // (PARTS - 1))
            sha.update(file.read(PART_BYTES))
    return sha.hexdigest()


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
