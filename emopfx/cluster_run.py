"""Runs the stages of an experiment in a cluster, in order and with the record; the command line and `watch` call it."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

import yaml

from emopfx import config, config_identity
from emopfx.cluster_config import identity, locate, refused
from emopfx.config import Experiment
from emopfx.errors import InputError, RunError
from emopfx.kubernetes import follow, jobs, names
from emopfx.kubernetes.api import Cluster, Conflict
from emopfx.kubernetes.configmap import RunRecord
from emopfx.kubernetes.lease import Held, Lease, Sightings
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
        role: What holds the run: a command (`run`), or the operator.
        sightings: What this process has seen of the runs that others hold.
    """

    release: str
    deployment: Deployment
    patience: float
    new_revision: bool = False
    retry: bool = True
    tell: Callable[[str], None] = say
    role: str = "run"
    sightings: Sightings = field(default_factory=Sightings)


def let_jobs_go(cluster: Cluster, record: RunRecord) -> bool:
    """Let the Jobs be deleted, after their time to live, whose outcome is in the record.

    Returns:
        Whether that is done; a Job may have been told to end, and not have ended yet.
    """
    ended = True
    for stage in jobs.STAGES:
        if record.state(stage) in ("succeeded", "failed"):
            job = cluster.get("Job", names.job(record.run, stage, record.hash))
            if job and jobs.outcome(job)[0] == "running":
                ended = False
            elif job:
                jobs.start_ttl(cluster, job)
    return ended


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
        self._lease = Lease(cluster, self.name, options.role, options.sightings)

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
        config_hash = config_identity.config_hash(identity(self._experiment))
        record = RunRecord(self.name, self._options.release, config_hash, self._given, self._given)
        found = self._cluster.get("ConfigMap", names.config_map(self.name))
        old = RunRecord.of(found) if found else None
        if found:
            # One without a record was applied by somebody, who keeps the say over its experiment.yaml.
            record.object, record.given_by_others = found, old is None or old.given_by_others
        if old and old.hash == config_hash:
            # Whoever recorded how they ended may have been killed before this.
            let_jobs_go(self._cluster, old)
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

    def is_recorded(self) -> bool:
        """Whether the record under the run's name is of this config."""
        record = RunRecord.read(self._cluster, self.name)
        return record is not None and record.hash == config_identity.config_hash(identity(self._experiment))

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
            self.fail(error)
            raise
        if done:
            entry |= {"state": "succeeded", "finished": now()}
            self.record.save(self._cluster)
            let_jobs_go(self._cluster, self.record)
        return done and len(ahead) == 1

    def fail(self, error: Exception) -> None:
        """Record that the stage that is under way has failed, and why."""
        entry = self.record.stages[self.ahead[0]]
        entry |= {"state": "failed", "finished": now(), "reason": str(error)}
        if isinstance(error, InputError):
            entry["refused"] = True
        # Where somebody has deleted the run, there is nothing left to write it into.
        with suppress(Conflict):
            self.record.save(self._cluster)
            let_jobs_go(self._cluster, self.record)


def run(cluster: Cluster, experiment: Experiment, given: str, stages: list[str], options: Options) -> None:
    """Run stages of an experiment in a cluster, and wait until they are done; what is done is kept.

    Where the operator works on the same run already, follow it to its end.

    Raises:
        InputError: If the config, or what it names, is wrong.
        RunError: If a stage failed, or another command works on the same run.
    """
    planned = ClusterRun(cluster, experiment, given, stages, options)
    if planned.changes:
        beside = "" if planned.name == experiment.name else f", and runs as {planned.name} beside the old results"
        say(f"{experiment.name}: the config has changed ({planned.changes}){beside}")
    told = False
    while True:
        try:
            return _hold(cluster, planned)
        except Held as held:
            if held.alive and not (held.operator and planned.is_recorded()):
                raise
            if held.alive:
                _follow_operator(cluster, planned.name)
            elif not told:
                say(f"waiting: {held}; whether it still does shows within a minute")
                told = True
        time.sleep(POLL_SECONDS)


def _hold(cluster: Cluster, planned: ClusterRun) -> None:
    """Bring a run to its end."""
    elsewhere = f"--name {planned.name} --target kubernetes -n {cluster.namespace}"
    with planned as held:
        if not held.ahead:
            say(f"{held.name}: nothing to do, all stages have succeeded; emopfx status {elsewhere}")
            return
        try:
            while not held.advance():
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            say(f"{held.name}: {_left_behind(held, elsewhere)}")
            raise
    say(f"{held.name}: done; emopfx fetch {elsewhere} brings the results here")


def _left_behind(held: ClusterRun, elsewhere: str) -> str:
    """Return what goes on in the cluster when this process stops."""
    stage = next(iter(held.ahead), "the last stage")
    if "job" in held.record.stages.get(stage, {}):
        return f"Jobs in the cluster go on; emopfx monitor {elsewhere} follows them"
    return f"{stage} was under way, and there is no Job yet that goes on by itself"


def _follow_operator(cluster: Cluster, run: str) -> None:
    say(f"{run}: the operator in the cluster works on it; this follows it, and ctrl-C leaves it")
    try:
        follow.monitor(cluster, run)
    except RunError as error:
        record = RunRecord.read(cluster, run)
        if record and any(refused(record, stage) for stage in record.stages):
            raise InputError(str(error)) from None
        raise
