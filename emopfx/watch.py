"""The loop in the cluster: runs what is applied as a ConfigMap, with the same code as `emopfx run`.

It keeps nothing that it can't read again: every pass lists the ConfigMaps and brings each run one step forward. So it
may be stopped at any time, and misses nothing that happened while it was away. It never deploys.
"""

import time
import traceback
from contextlib import ExitStack
from functools import partial

from emopfx import cluster_config, config_identity
from emopfx.cluster_run import ClusterRun, Options, let_jobs_go
from emopfx.config import Experiment
from emopfx.errors import InputError, RunError
from emopfx.kubernetes import configmap, names
from emopfx.kubernetes.api import Cluster, Object
from emopfx.kubernetes.configmap import GIVEN, RunRecord
from emopfx.kubernetes.lease import OPERATOR, Held, Sightings
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
        self._over: dict[str, str] = {}
        self._sightings = Sightings()

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
        # Those that are taken up in this pass may have ConfigMaps that were not there when the list was read.
        before = set(self._held)
        listed, version = self._cluster.find_versioned("ConfigMap", names.EXPERIMENT_LABEL)
        for found in listed:
            if found["metadata"]["labels"].get(names.RELEASE_LABEL, self._release) == self._release:
                self._take_up(found)
        there = {found["metadata"]["name"] for found in listed}
        for run, (held, _) in list(self._held.items()):
            if run in before and names.config_map(run) not in there:
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
        # What nobody foresaw in one must not stop the others.
        except Exception as error:  # noqa: BLE001
            self._refuse(found, _unforeseen(error))
            return
        self._refused.pop(name, None)
        configmap.accept(self._cluster, found)
        if planned:
            say(f"{planned.name}: taken up ({', '.join(planned.ahead)})")
            self._held[planned.name] = planned, stack

    def _planned(self, found: Object) -> ClusterRun | None:
        """Return the run of what is in a ConfigMap, None if there is nothing to do for it."""
        text, recorded = (found.get("data") or {}).get(GIVEN), RunRecord.of(found)
        if recorded and recorded.run not in self._held:
            self._tidy(recorded)
        if text is None or (recorded and recorded.config == text and not wanted(recorded, [])):
            return None
        experiment = cluster_config.read(text, _source(found))
        _check(found, experiment)
        run, record, _ = cluster_config.locate(self._cluster, experiment, self._release)
        config_hash = config_identity.config_hash(cluster_config.identity(experiment))
        stages = wanted(record if record and record.hash == config_hash else None, list(experiment.stages))
        if run in self._held or not stages:
            return None
        options = Options(
            self._release,
            Deployment(""),
            SERVER_SECONDS,
            retry=False,
            tell=partial(_tell, run),
            role=OPERATOR,
            sightings=self._sightings,
        )
        return ClusterRun(self._cluster, experiment, text, stages, options)

    def _tidy(self, recorded: RunRecord) -> None:
        """Let a run's ended Jobs go, once for each version of its record."""
        version = recorded.object["metadata"]["resourceVersion"]
        if self._over.get(recorded.run) != version and let_jobs_go(self._cluster, recorded):
            self._over[recorded.run] = version

    def _refuse(self, found: Object, sentence: str) -> None:
        name = found["metadata"]["name"]
        if self._refused.get(name) != sentence:
            self._refused[name] = sentence
            say(sentence if sentence.startswith(_source(found)) else f"{_source(found)}: {sentence}")
            configmap.refuse(self._cluster, found, sentence, now())

    def _advance(self, run: str, held: ClusterRun) -> None:
        try:
            done = held.advance()
        except (InputError, RunError) as error:
            say(f"{run}: {error}")
            self._let_go(run)
        except Exception as error:  # noqa: BLE001
            held.fail(RunError(_unforeseen(error)))
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


def _source(found: Object) -> str:
    return f"ConfigMap {found['metadata']['name']}"


def _check(found: Object, experiment: Experiment) -> None:
    """See that a config can be run from its ConfigMap.

    Raises:
        InputError: If not.
    """
    label = found["metadata"]["labels"][names.EXPERIMENT_LABEL]
    if label != experiment.name:
        raise InputError(
            f"the label {names.EXPERIMENT_LABEL} is {label}, and the config's name is {experiment.name}; they must be "
            "the same"
        )
    if set(experiment.stages) <= {NOT_HERE}:
        raise InputError(f"stages: the operator leaves {NOT_HERE} to emopfx run, and the config asks for nothing else")


def _unforeseen(error: Exception) -> str:
    say(traceback.format_exc())
    return f"an error in emopfx itself, which its log shows: {type(error).__name__}: {error}"


def _tell(run: str, line: str) -> None:
    say(f"{run}: {line}")
