"""Deletes a run: its Jobs, its Lease and its record, and its results only where that is asked for."""

import time
from contextlib import suppress

from emopfx.errors import InputError, RunError
from emopfx.kubernetes import jobs, names
from emopfx.kubernetes.api import Cluster, Conflict, Object
from emopfx.progress import say

POLL_SECONDS = 1.0
DATA_SECONDS = 600.0
STAGE = "delete"


def delete(cluster: Cluster, run: str, release: str, *, data: bool) -> None:
    """Delete a run.

    Args:
        cluster: Where.
        run: Its name.
        release: The release that it belongs to.
        data: Whether its results and activations go too.

    Raises:
        InputError: If there is nothing of that name to delete.
        RunError: If the data could not be deleted; asked again, it is tried again.
    """
    selector = names.selector({names.EXPERIMENT_LABEL: run})
    records = cluster.find("ConfigMap", selector)
    if not records and not data:
        raise InputError(f"there is no experiment {run} in the namespace {cluster.namespace}")
    # Before anything is gone: without a release, nobody could delete the data.
    cron_job = jobs.template(cluster, release, "generate") if data else None
    # The record first: without it nobody brings the run forward, and no pod that was just made can start.
    for record in records:
        cluster.delete("ConfigMap", record["metadata"]["name"])
    for job in cluster.find("Job", selector):
        cluster.delete("Job", job["metadata"]["name"])
    if cron_job:
        _wait_for_pods(cluster, selector)
        _delete_data(cluster, run, cron_job)
        _wait_for_pods(cluster, selector)
    cluster.delete("Lease", names.config_map(run))
    say(f"{run}: deleted {'with' if data else 'without'} its results")


def _wait_for_pods(cluster: Cluster, selector: str) -> None:
    """Wait until the run's pods are gone: one that still writes would bring folders back, and deleted means gone."""
    deadline = time.monotonic() + DATA_SECONDS
    while found := cluster.find("Pod", selector):
        if time.monotonic() > deadline:
            name = found[0]["metadata"]["name"]
            raise RunError(f"pod {name} is still there after {DATA_SECONDS:.0f} s; delete it again when it has gone")
        time.sleep(POLL_SECONDS)


def _delete_data(cluster: Cluster, run: str, cron_job: Object) -> None:
    """Delete a run's folder by a Job: only pods see the volume, and the template knows how."""
    labels = {names.EXPERIMENT_LABEL: run, names.STAGE_LABEL: STAGE}
    name = f"{run}-{STAGE}"
    arguments = ["delete", "--name", run, "--data", "--results", "/data/results"]
    # It mounts the template's own experiment: the run's record may be gone already.
    job = jobs.at_once(jobs.from_template(cron_job, name=name, labels=labels, args=arguments))
    # A conflict means that the answer to a first try was lost: older Jobs of the run are gone by now.
    with suppress(Conflict):
        cluster.create(job)
    deadline = time.monotonic() + DATA_SECONDS
    while (state := _state(cluster, name)) == "running":
        if time.monotonic() > deadline:
            raise RunError(f"Job {name}, which deletes the results, has not ended within {DATA_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    if state == "failed":
        ended = cluster.get("Job", name)
        said = [jobs.last_words(pod) for pod in jobs.pods(cluster, ended)] if ended else ["somebody has deleted it"]
        raise RunError(f"Job {name} could not delete the results: {'; '.join(filter(None, said))}")
    cluster.delete("Job", name)


def _state(cluster: Cluster, name: str) -> str:
    job: Object | None = cluster.get("Job", name)
    if job is None:
        return "failed"
    if jobs.refusal(jobs.pods(cluster, job)):
        jobs.fail_now(cluster, name)
    return jobs.outcome(job)[0]
