"""The record of an experiment, `experiment_config.json`: what was resolved, and how far each stage is."""

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emopfx import __version__, config_identity
from emopfx.config import Experiment
from emopfx.errors import InputError, RunError
from emopfx.hashing import Json
from emopfx.layout import Layout, read_json, sample_key, write_json

LOCK_NAME = ".lock"


def now() -> str:
    """Return the time as an ISO 8601 string in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Record:
    """The record of one experiment; every change is written at once.

    `content` holds name, hash, run, stages, config, dataset, model, server and identity (what is hashed).
    """

    def __init__(self, layout: Layout, content: dict[str, Any]) -> None:
        self.layout, self.content = layout, content

    @classmethod
    def read(cls, layout: Layout) -> "Record | None":
        """Read the record of an experiment, None if there is none."""
        content = read_json(layout.record)
        return None if content is None else cls(layout, content)

    @classmethod
    def start(
        cls,
        layout: Layout,
        experiment: Experiment,
        identity: Mapping[str, Json],
        dataset: Mapping[str, Json],
        stages: list[str],
    ) -> "Record":
        """Open the record for a run of these stages, or make it where there is none yet.

        Args:
            layout: The experiment's folder; a record in it has the same identity.
            experiment: The config.
            identity: What the config hash covers.
            dataset: What was read from the dataset, with its `sample_ids`.
            stages: The stages to come, which are pending from now on.
        """
        old = cls.read(layout)
        before = old.content if old else {}
        config_hash = config_identity.config_hash(identity)
        # What a server said, it said about the config of that time.
        known = before if before.get("hash") == config_hash else {}
        content = {
            "name": layout.name,
            "hash": config_hash,
            "created": before.get("created", now()),
            "run": {
                "started": now(),
                "stages": stages,
                "emopfx": __version__,
                "python": sys.version.split()[0],
            },
            "stages": {**before.get("stages", {}), **{stage: {"state": "pending"} for stage in stages}},
            # A run under --new-revision goes on under its folder's name.
            "config": {**experiment.model_dump(), "name": layout.name},
            "dataset": dict(dataset),
            "model": known.get("model", {}),
            "server": known.get("server", {}),
            "identity": dict(identity),
        }
        record = cls(layout, content)
        record.save()
        return record

    @property
    def hash(self) -> str:
        """The config hash."""
        return str(self.content["hash"])

    def sample_keys(self) -> list[str]:
        """Return the keys of all samples that the experiment has when it is complete, variant by variant."""
        repeats = self.content["config"]["generation"]["repeats"]
        return [
            sample_key(variant["name"], sample_id, repeat, repeats)
            for variant in self.content["config"]["variants"]
            for sample_id in self.content["dataset"]["sample_ids"]
            for repeat in range(1, repeats + 1)
        ]

    def unfinished(self) -> list[str]:
        """Return the keys of the samples that are not complete."""
        return [key for key in self.sample_keys() if self.layout.finished(key, self.hash) is None]

    def state(self, stage: str) -> str | None:
        """Return a stage's state, None if it was never asked for; a stage whose run was killed is stopped."""
        state: str | None = self.content["stages"].get(stage, {}).get("state")
        return "stopped" if state == "running" and not running(self.layout) else state

    def save(self) -> None:
        """Write the record."""
        write_json(self.layout.record, self.content)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Record a stage as running, then as succeeded, or as failed with the reason.

        Yields:
            The stage's entry, to which counts may be added.
        """
        entry: dict[str, Any] = {"state": "running", "started": now()}
        self.content["stages"][name] = entry
        self.save()
        try:
            yield entry
        except BaseException as error:
            reason = str(error) if isinstance(error, InputError | RunError) else type(error).__name__
            entry |= {"state": "failed", "finished": now(), "reason": reason}
            self.save()
            raise
        entry |= {"state": "succeeded", "finished": now()}
        self.save()


def choose_folder(root: Path, experiment: Experiment, identity: Mapping[str, Json], *, new_revision: bool) -> Layout:
    """Return the folder for an experiment: the one of its name, or of its name and hash.

    Args:
        root: The folder of all results.
        experiment: The config.
        identity: What its hash covers.
        new_revision: Whether a config that differs from the one under this name gets `<name>-<hash>`.

    Raises:
        InputError: If the folder of this name belongs to another config, with what differs.
    """
    layout = Layout(root, experiment.name)
    old = Record.read(layout)
    new_hash = config_identity.config_hash(identity)
    # A config that never got as far as a sample may be corrected in place.
    if old is None or old.hash == new_hash or len(old.unfinished()) == len(old.sample_keys()):
        return layout
    if new_revision:
        return Layout(root, f"{experiment.name[:31].rstrip('-')}-{new_hash[:8]}")
    changes = "; ".join(config_identity.difference(old.content["identity"], identity))
    raise InputError(
        f"{layout.folder} holds results of another config ({changes}); "
        "choose another name, or keep both with --new-revision"
    )


def make_folder(layout: Layout) -> None:
    """Make the folder of an experiment, if there is none yet.

    Raises:
        InputError: If there can be none.
    """
    try:
        layout.folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{layout.folder} can't be a folder: there is a file in the way") from None


@contextmanager
def hold(root: Path, experiment: Experiment, identity: Mapping[str, Json], *, new_revision: bool) -> Iterator[Layout]:
    """Choose the folder for an experiment, as `choose_folder` does, and hold it for oneself.

    Raises:
        InputError: If the folder of this name belongs to another config, with what differs.
        RunError: If another process holds it.
    """
    while True:
        layout = choose_folder(root, experiment, identity, new_revision=new_revision)
        with lock(layout):
            # Another run may have begun and ended before the lock.
            if choose_folder(root, experiment, identity, new_revision=new_revision) == layout:
                yield layout
                return


@contextmanager
def lock(layout: Layout) -> Iterator[None]:
    """Hold an experiment for oneself; the lock ends with the process, however it ends.

    Raises:
        InputError: If there can be no folder for it.
        RunError: If another process holds it.
    """
    make_folder(layout)
    file = os.open(layout.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # `running` takes the lock for an instant, hence the second chance.
        if not _try_lock(file):
            time.sleep(0.2)
            if not _try_lock(file):
                raise RunError(f"another run of {layout.name} is at work in {layout.folder}; emopfx monitor follows it")
        yield
    finally:
        os.close(file)


def running(layout: Layout) -> bool:
    """Whether a process works on an experiment on this machine."""
    try:
        file = os.open(layout.folder / LOCK_NAME, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not _try_lock(file)
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
