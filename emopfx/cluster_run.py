"""Runs the stages of an experiment in a cluster, in order and with the record; the command line and `watch` call it.

The config hash of a run is made here, where dataset and vector files of the cluster can't be read: it covers their
paths as given in place of their content. (The Jobs record the hash with the content, in experiment_config.json.)
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import yaml

from emopfx import config, config_file, dataset
from emopfx.config import Experiment
from emopfx.errors import InputError, RunError
from emopfx.hashing import Json
from emopfx.kubernetes import jobs, names
from emopfx.kubernetes.api import Cluster, Conflict
from emopfx.kubernetes.configmap import RunRecord
from emopfx.kubernetes.lease import Lease
from emopfx.progress import say
from emopfx.record import now
from emopfx.targets.cluster import ClusterTarget, Deployment

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what.

    Attributes:
        release: The Helm release.
        deployment: How it is installed.
        patience: Seconds to wait for its server.
        new_revision: Whether the run gets a name with its hash even if no other config is recorded under its name.
        retry: Whether what failed before is tried again.
        tell: Takes a line for people.
    """

    release: str
    deployment: Deployment
    patience: float
    new_revision: bool = False
    retry: bool = True
    tell: Callable[[str], None] = say


def read(text: str, source: str) -> Experiment:
    """Read an experiment.yaml whose dataset, if it is a file, lies in the cluster.

    Raises:
        InputError: If anything in it is wrong.
    """
    return config_file.parse(config_file.parse_yaml(text, source), source, find_files=False)


def config_of(cluster: Cluster, run: str) -> dict[str, Any]:
    """Return the raw config that is recorded under a name, empty if there is none."""
    record = RunRecord.read(cluster, run)
    return config_file.parse_yaml(record.config, run) if record else {}


def identity(experiment: Experiment) -> dict[str, Json]:
    """Return what the config hash of a run in a cluster covers."""
    return config.identity(experiment, dataset.reference(experiment.dataset))


def locate(
    cluster: Cluster, experiment: Experiment, release: str, *, new_revision: bool = False
) -> tuple[str, RunRecord | None, str]:
    """Find the run of a config: the one of the experiment's name, or of its name and hash if that has another config.

    Returns:
        The run's name, its record if it has one, and what differs from the config under the experiment's name.

    Raises:
        InputError: If the name belongs to another release.
    """
    identified = identity(experiment)
    config_hash = config.config_hash(identified)
    old = RunRecord.read(cluster, experiment.name)
    if old and old.release != release:
        raise InputError(
            f"{experiment.name} belongs to the release {old.release} in {cluster.namespace}; choose another name, or "
            f"--release {old.release}"
        )
    if (old is None and not new_revision) or (old and old.hash == config_hash):
        return experiment.name, old, ""
    changes = config.difference(identity(read(old.config, "run.yaml")), identified) if old else []
    if old and not _has_samples(old) and not new_revision:
        return experiment.name, old, "; ".join(changes)
    run = names.revision(experiment.name, config_hash)
    return run, RunRecord.read(cluster, run), "; ".join(changes)


def _has_samples(record: RunRecord) -> bool:
    """Whether a run may have got as far as a sample; before, its config may be corrected in place."""
    generate = record.stages.get("generate", {})
    refused = generate.get("state") == "failed" and generate.get("refused") and not generate.get("done")
    return generate.get("state", "pending") != "pending" and not refused


class ClusterRun:
    """One run, held by this process; use it as a context manager and call `advance` until it says that all is done.

    Args:
        cluster: Where.
        experiment: The config.
        given: The config as it was given (YAML).
        stages: The stages to run.
        options: How to run them.

    Raises:
        InputError: If the config is wrong.
        Held: If another process is at work on the run (on entering, or later if it has taken over).
    """

    def __init__(
        self, cluster: Cluster, experiment: Experiment, given: str, stages: list[str], options: Options
    ) -> None:
        self._cluster, self._options, self._stages = cluster, options, stages
        self.name, _, changes = locate(cluster, experiment, options.release, new_revision=options.new_revision)
        self.changes = changes
        if self.name != experiment.name:
            experiment = experiment.model_copy(update={"name": self.name})
            given = yaml.safe_dump({**yaml.safe_load(given), "name": self.name}, sort_keys=False, allow_unicode=True)
        self._experiment, self._given = experiment, given
        self._lease = Lease(cluster, self.name)

    def __enter__(self) -> "ClusterRun":
        self._lease.__enter__()
        try:
            self.record = self._start()
        except BaseException as error:
            self._lease.__exit__(type(error), error, None)
            raise
        self._target = ClusterTarget(
            self._cluster,
            self.record,
            self._experiment,
            self._options.deployment,
            patience=self._options.patience,
            retry=self._options.retry,
            tell=self._options.tell,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lease.__exit__(kind, error, trace)

    def _start(self) -> RunRecord:
        """Return the record, with the stages that are to be run pending."""
        config_hash = config.config_hash(identity(self._experiment))
        record = RunRecord(self.name, self._options.release, config_hash, self._given, self._given)
        found = self._cluster.get("ConfigMap", names.config_map(self.name))
        old = RunRecord.of(found) if found else None
        if found:
            # One without a record was applied by somebody, who keeps the say over its experiment.yaml.
            record.object, record.given_by_others = found, old is None or old.given_by_others
        if old and old.hash == config_hash:
            record.stages, record.resolved, record.summary = old.stages, old.resolved, old.summary
            work = [stage for stage in self._stages if stage in jobs.STAGES]
            if work and all(record.state(stage) == "succeeded" for stage in work):
                return record
        for stage in self._stages:
            if stage not in jobs.STAGES or record.state(stage) != "succeeded":
                record.stages[stage] = {"state": "pending"}
        if "generate" in self._stages and "analyze" in self._stages and record.state("generate") == "pending":
            record.stages["analyze"] = {"state": "pending"}
        record.stages = {stage: record.stages[stage] for stage in config.STAGES if stage in record.stages}
        record.save(self._cluster)
        return record

    @property
    def ahead(self) -> list[str]:
        """The stages that are still to be done."""
        states = {stage: self.record.state(stage) for stage in self.record.stages if stage in self._stages}
        return [stage for stage, state in states.items() if state in ("pending", "running")]

    def advance(self) -> bool:
        """Do what can be done now.

        Returns:
            Whether all stages have succeeded.

        Raises:
            InputError: If a stage failed because the config is wrong.
            RunError: If a stage failed otherwise.
        """
        self._lease.renew()
        ahead = self.ahead
        stage = ahead[0]
        entry = self.record.stages[stage]
        if entry["state"] != "running":
            entry |= {"state": "running", "started": now()}
            self.record.save(self._cluster)
        try:
            done = self._target.advance(stage, entry)
        except (InputError, RunError) as error:
            entry |= {"state": "failed", "finished": now(), "reason": str(error)}
            if isinstance(error, InputError):
                entry["refused"] = True
            # Where somebody has deleted the run, there is nothing left to write it into.
            with suppress(Conflict):
                self.record.save(self._cluster)
            raise
        if done:
            entry |= {"state": "succeeded", "finished": now()}
            self.record.save(self._cluster)
            if stage in jobs.STAGES:
                self._target.recorded(stage)
        return done and len(ahead) == 1


def run(cluster: Cluster, experiment: Experiment, given: str, stages: list[str], options: Options) -> None:
    """Run stages of an experiment in a cluster, and wait until they are done; what is done is kept.

    Raises:
        InputError: If the config, or what it names, is wrong.
        RunError: If a stage failed, or somebody else works on the same run.
    """
    planned = ClusterRun(cluster, experiment, given, stages, options)
    if planned.changes:
        beside = "" if planned.name == experiment.name else f", and runs as {planned.name} beside the old results"
        say(f"{experiment.name}: the config has changed ({planned.changes}){beside}")
    elsewhere = f"--name {planned.name} --target kubernetes -n {cluster.namespace}"
    with planned as held:
        if not held.ahead:
            say(f"{held.name}: nothing to do, all stages have succeeded; emopfx status {elsewhere}")
            return
        try:
            while not held.advance():
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            say(f"{held.name}: Jobs in the cluster go on; emopfx monitor {elsewhere} follows them")
            raise
    say(f"{held.name}: done; emopfx fetch {elsewhere} brings the results here")
