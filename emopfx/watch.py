"""The loop in the cluster: runs what is applied as a ConfigMap, with the same code as `emopfx run`.

It keeps nothing that it can't read again: every pass lists the ConfigMaps and brings each run one step forward. So it
may be stopped at any time, and misses nothing that happened while it was away. It never deploys.
"""

import time
from contextlib import ExitStack
from functools import partial

from emopfx import cluster_run, config
from emopfx.cluster_run import ClusterRun, Options
from emopfx.errors import InputError, RunError
from emopfx.kubernetes import configmap, names
from emopfx.kubernetes.api import Cluster, Object
from emopfx.kubernetes.configmap import GIVEN, RunRecord
from emopfx.kubernetes.lease import Held
from emopfx.progress import say
from emopfx.record import now
from emopfx.targets.cluster import Deployment

BUSY_SECONDS, RESYNC_SECONDS = 2.0, 60.0
SERVER_SECONDS = 3600.0
# What the operator leaves to others.
NOT_HERE = "deploy"


def watch(cluster: Cluster, release: str) -> None:
    """Run every labelled ConfigMap of a release until interrupted."""
    say(f"watch: looking for ConfigMaps labelled {names.EXPERIMENT_LABEL} in {cluster.namespace}")
    watcher = Watcher(cluster, release)
    try:
        while True:
            version = watcher.step()
            if watcher.busy:
                time.sleep(BUSY_SECONDS)
            else:
                cluster.wait_for_config_map(names.EXPERIMENT_LABEL, version, RESYNC_SECONDS)
    finally:
        watcher.close()


class Watcher:
    """Brings the runs of a release forward; `close` lets go of them, for others to go on.

    Args:
        cluster: Where.
        release: The release.
    """

    def __init__(self, cluster: Cluster, release: str) -> None:
        self._cluster, self._release = cluster, release
        self._held: dict[str, tuple[ClusterRun, ExitStack]] = {}
        self._refused: dict[str, str] = {}

    @property
    def busy(self) -> bool:
        """Whether a run is not done yet."""
        return bool(self._held)

    def close(self) -> None:
        """Let go of all runs."""
        for run in list(self._held):
            self._let_go(run)

    def step(self) -> str:
        """Look at all ConfigMaps and bring each run one step forward.

        Returns:
            The version of the list that was read.
        """
        listed, version = self._cluster.find_versioned("ConfigMap", names.EXPERIMENT_LABEL)
        for found in listed:
            if found["metadata"]["labels"].get(names.RELEASE_LABEL, self._release) == self._release:
                self._take_up(found)
        there = {found["metadata"]["name"] for found in listed}
        for run, (held, _) in list(self._held.items()):
            if names.config_map(run) not in there:
                say(f"{run}: its ConfigMap is gone, so nothing more is done about it")
                self._let_go(run)
            else:
                self._advance(run, held)
        return version

    def _take_up(self, found: Object) -> None:
        name = found["metadata"]["name"]
        try:
            planned = self._planned(found)
            if planned:
                stack = ExitStack()
                stack.enter_context(planned)
        except Held:
            return
        except InputError as error:
            self._refuse(found, str(error))
            return
        except RunError as error:
            # Somebody has changed or deleted it meanwhile; the next pass sees what there is then.
            say(f"ConfigMap {name}: {error}")
            return
        self._refused.pop(name, None)
        configmap.accept(self._cluster, found)
        if planned:
            say(f"{planned.name}: taken up ({', '.join(planned.ahead)})")
            self._held[planned.name] = planned, stack

    def _planned(self, found: Object) -> ClusterRun | None:
        """Return the run of what is in a ConfigMap, None if there is nothing to do for it."""
        text, recorded = (found.get("data") or {}).get(GIVEN), RunRecord.of(found)
        if text is None or (recorded and recorded.config == text and not wanted(recorded, [])):
            return None
        experiment = cluster_run.read(text, f"ConfigMap {found['metadata']['name']}")
        run, record, _ = cluster_run.locate(self._cluster, experiment, self._release)
        config_hash = config.config_hash(cluster_run.identity(experiment))
        stages = wanted(record if record and record.hash == config_hash else None, list(experiment.stages))
        if run in self._held or not stages:
            return None
        options = Options(self._release, Deployment(""), SERVER_SECONDS, retry=False, tell=partial(_tell, run))
        return ClusterRun(self._cluster, experiment, text, stages, options)

    def _refuse(self, found: Object, sentence: str) -> None:
        name = found["metadata"]["name"]
        if self._refused.get(name) != sentence:
            self._refused[name] = sentence
            say(f"ConfigMap {name}: {sentence}")
            configmap.refuse(self._cluster, found, sentence, now())

    def _advance(self, run: str, held: ClusterRun) -> None:
        try:
            done = held.advance()
        except (InputError, RunError) as error:
            say(f"{run}: {error}")
            self._let_go(run)
        else:
            if done:
                say(f"{run}: all stages have succeeded")
                self._let_go(run)

    def _let_go(self, run: str) -> None:
        _, stack = self._held.pop(run)
        stack.close()


def wanted(record: RunRecord | None, stages: list[str]) -> list[str]:
    """Return the stages that the operator has to run: none where they are done, or one has failed.

    Args:
        record: The record of the config, None if there is none yet.
        stages: The stages that the config lists.
    """
    if record is None:
        return [stage for stage in stages if stage != NOT_HERE]
    states = {stage: record.state(stage) for stage in record.stages if stage != NOT_HERE}
    if "failed" in states.values():
        return []
    return [stage for stage, state in states.items() if state in ("pending", "running")]


def _tell(run: str, line: str) -> None:
    say(f"{run}: {line}")
