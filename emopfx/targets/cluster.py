"""The target `kubernetes`: a release of the chart, and Jobs made from its templates.

Nothing here waits: each call looks at the cluster, does what can be done now, and says whether the stage is done.
So one process can bring several runs forward, and another one can go on where it was killed.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emopfx.config import Experiment
from emopfx.errors import InputError, RunError
from emopfx.kubernetes import helm, jobs, logs, names, pods, portforward
from emopfx.kubernetes.api import Cluster, Conflict, Object
from emopfx.kubernetes.configmap import RunRecord, summarize
from emopfx.kubernetes.rollout import Rollout
from emopfx.stages.configure import configure
from emopfx.targets.waiting import Waiting

SAVE_SECONDS = 10.0
REACH_TRIES = 3


@dataclass(frozen=True)
class Deployment:
    """How the stage deploy installs a release.

    Attributes:
        chart: A folder, an archive or an oci:// address.
        values: What the release is given beside the experiment's model.
    """

    chart: str
    values: Mapping[str, Any] = field(default_factory=dict)


class ClusterTarget:
    """Brings the stages of one run forward.

    Args:
        cluster: Where.
        record: The run's record.
        experiment: Its config.
        deployment: How a release is installed.
        patience: Seconds to wait for a server that is not ready.
        retry: Whether a Job that failed before is made again.
        tell: Takes a line for people.
    """

    def __init__(
        self,
        cluster: Cluster,
        record: RunRecord,
        experiment: Experiment,
        deployment: Deployment,
        *,
        patience: float,
        retry: bool,
        tell: Callable[[str], None],
    ) -> None:
        self._cluster, self._record, self._experiment, self._deployment = cluster, record, experiment, deployment
        self._patience, self._retry, self._tell = patience, retry, tell
        self._rollout = Rollout(cluster, record.release)
        self._deployed = False
        self._made: set[str] = set()
        self._tails: dict[str, logs.Tail] = {}
        self._waiting = Waiting(patience)
        self._unreached = 0
        self._saved = 0.0

    def advance(self, stage: str, entry: dict[str, Any]) -> bool:
        """Do what can be done for a stage now.

        Args:
            stage: deploy, configure, generate or analyze.
            entry: The stage's entry in the record, which is kept up to date.

        Returns:
            Whether the stage is done.

        Raises:
            InputError: If the config turns out to be wrong.
            RunError: If the stage failed.
        """
        match stage:
            case "deploy":
                done = self._deploy(entry)
            case "configure":
                done = self._configure(entry)
            case _:
                done = self._run_job(stage, entry)
        if done:
            entry.pop("reason", None)
            self._waiting = Waiting(self._patience)
        return done

    def _deploy(self, entry: dict[str, Any]) -> bool:
        if not self._deployed:
            self._install()
            self._deployed = True
        account = self._rollout.account()
        if account:
            self._wait(entry, account)
            return False
        self._tell(f"deploy: the server is ready with {self._experiment.model.name}")
        return True

    def _install(self) -> None:
        """Install or upgrade the release, unless it is already as it should be.

        Raises:
            RunError: If another run's answers come from the release and would change with it.
        """
        release, namespace = self._record.release, self._cluster.namespace
        model = self._experiment.model
        served = {"name": model.name, "dtype": model.dtype, "revision": model.revision or ""}
        tool = helm.find(namespace)
        change = helm.needed(tool, release, helm.merged(self._deployment.values, {"model": served}))
        if change:
            self._refuse_if_in_use()
            helm.apply(tool, release, self._deployment.chart, change)
        outcome = ("upgraded" if change.before else "installed") if change else "unchanged"
        self._tell(f"deploy: release {release} in {namespace} is {outcome}")

    def _refuse_if_in_use(self) -> None:
        record = self._record
        selector = names.selector({names.RELEASE_LABEL: record.release, names.STAGE_LABEL: "generate"})
        for job in self._cluster.find("Job", selector):
            run = job["metadata"]["labels"].get(names.EXPERIMENT_LABEL)
            if run != record.run and jobs.outcome(job)[0] == "running":
                raise RunError(
                    f"the release {record.release} must be changed for {record.run}, but {run} gets its answers from "
                    f"it (Job {job['metadata']['name']}); wait for it (emopfx monitor --name {run} --target "
                    f"kubernetes -n {self._cluster.namespace}), or choose another release (--release)"
                )

    def _configure(self, entry: dict[str, Any]) -> bool:
        try:
            with portforward.server(self._cluster, self._record.release) as api:
                problem = api.not_ready()
                structure = None if problem else api.structure()
        except RunError as error:
            self._wait(entry, pods.Account(str(error)))
            return False
        if structure is None:
            self._unreached += 1
            if not self._cluster.inside and self._unreached == REACH_TRIES:
                self._tell(f"configure: the server can't be reached from here ({problem}); the Job checks the config")
                return True
            self._wait(entry, pods.Account(f"the server is not ready: {problem}"))
            return False
        layers = configure(self._experiment, structure)
        self._tell(f"configure: {structure.model}, {structure.num_layers} layers; capturing {len(layers)} of them")
        return True

    def _run_job(self, stage: str, entry: dict[str, Any]) -> bool:
        name = names.job(self._record.run, stage, self._record.hash)
        job = self._cluster.get("Job", name)
        if job and self._retry and name not in self._made and jobs.outcome(job)[0] == "failed":
            self._tell(f"{stage}: Job {name} had failed and is made again")
            self._cluster.delete("Job", name)
            job = None
        if job is None:
            if name in self._made:
                raise RunError(f"somebody has deleted Job {name}")
            job = self._make(stage, name)
        self._made.add(name)
        entry["job"] = name
        return self._look(stage, entry, job)

    def _make(self, stage: str, name: str) -> Object:
        record = self._record
        labels = {**names.labels(record.run, record.release, record.hash), names.STAGE_LABEL: stage}
        cron_job = jobs.template(self._cluster, record.release, stage)
        job = jobs.from_template(cron_job, name=name, run=record.run, labels=labels, owner=record.object)
        try:
            made = self._cluster.create(job)
        except Conflict:
            # The answer to a first try was lost on the way.
            made = self._cluster.get("Job", name) or job
        self._tell(f"{stage}: Job {name} is made")
        return made

    def _look(self, stage: str, entry: dict[str, Any], job: Object) -> bool:
        name, found = job["metadata"]["name"], jobs.pods(self._cluster, job)
        self._relay(name, entry, found)
        state, message = jobs.outcome(job)
        refusal = jobs.refusal(found)
        if refusal:
            jobs.fail_now(self._cluster, name)
            raise InputError(refusal)
        if state == "failed":
            said = next((words for pod in reversed(found) if (words := jobs.last_words(pod))), "")
            raise RunError(f"Job {name} failed ({message})" + (f": {said}" if said else ""))
        if state == "succeeded":
            return self._collect(stage, entry, job)
        accounts = pods.accounts(found)
        if job["spec"].get("suspend"):
            accounts.append(pods.Account(f"Job {name} is suspended, as it is while it waits in a queue"))
        if accounts:
            self._wait(entry, accounts[-1], forever=True)
        elif entry.pop("reason", None):
            self._waiting = Waiting(self._patience)
            self._save()
        return False

    def _relay(self, name: str, entry: dict[str, Any], found: list[Object]) -> None:
        tail = self._tails.setdefault(name, logs.Tail(self._cluster))
        for line in tail.new_lines(found):
            self._tell(line.rstrip())
            if progress := logs.progress(line):
                entry["done"], entry["total"] = progress
        if "done" in entry and time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def _collect(self, stage: str, entry: dict[str, Any], job: Object) -> bool:
        """Read what a Job that succeeded has written, through the server: this process need not see the volume."""
        folder = self._record.run
        try:
            with portforward.server(self._cluster, self._record.release) as api:
                resolved = api.read(f"{folder}/experiment_config.json")
                report = api.read(f"{folder}/report.json") if stage == "analyze" else None
        except RunError as error:
            reason = f"Job {job['metadata']['name']} succeeded, but its results can't be read yet: {error}"
            self._wait(entry, pods.Account(reason))
            return False
        self._record.resolved = json.loads(resolved) if resolved else None
        if report:
            self._record.summary = summarize(json.loads(report))
        entry["started"] = job["status"].get("startTime", entry["started"])
        return True

    def _wait(self, entry: dict[str, Any], account: pods.Account, *, forever: bool = False) -> None:
        """Say once why the stage does not go on.

        Raises:
            RunError: If that will not change by itself, or (unless `forever`) has not for too long.
        """
        if self._waiting.is_new(account):
            self._tell(f"waiting: {account.reason}")
            entry["reason"] = account.reason
            self._save()
        self._waiting.go_on(account, forever=forever)

    def _save(self) -> None:
        self._saved = time.monotonic()
        self._record.save(self._cluster)
