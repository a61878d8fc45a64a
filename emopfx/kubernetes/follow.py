"""Follows a run's Jobs from pod to pod: as bars, or as what they print."""

import sys
import time

from emopfx.errors import RunError
from emopfx.kubernetes import jobs, lease, logs, names, pods
from emopfx.kubernetes.api import Cluster, Object
from emopfx.kubernetes.configmap import RunRecord
from emopfx.kubernetes.lease import Sightings
from emopfx.kubernetes.status import read
from emopfx.progress import Progress, console, say

POLL_SECONDS = 2.0
# How long an operator may take to see what was applied.
TAKE_UP_SECONDS = 60.0
# How often a log is asked for that can't be read, when everything else is over.
LOG_TRIES = 5


def monitor(cluster: Cluster, run: str) -> None:
    """Follow the Jobs of a run until they have ended, from pod to pod.

    Raises:
        InputError: If there is no such run.
        RunError: If a stage failed, or nobody brings the run forward (any more).
    """
    sightings = Sightings()
    for stage in _stages(cluster, run):
        _follow(cluster, run, stage, sightings)
    say(f"{run}: all stages have succeeded")


def _stages(cluster: Cluster, run: str) -> list[str]:
    """Return the stages of a run that are Jobs.

    Raises:
        RunError: If nobody has taken up what was applied, or a stage before them failed.
    """
    record, deadline = read(cluster, run), time.monotonic() + TAKE_UP_SECONDS
    if not record.stages:
        say(f"waiting: {run} was applied, and nobody has taken it up yet")
    while not record.stages:
        if time.monotonic() > deadline:
            raise RunError(f"{run} was applied, and nobody has taken it up (the chart's operator.enabled does)")
        time.sleep(POLL_SECONDS)
        record = read(cluster, run)
    stages = [stage for stage in jobs.STAGES if record.state(stage) is not None]
    if not stages and (failure := _failure(record, jobs.STAGES[0])):
        raise RunError(failure)
    return stages


def _failure(record: RunRecord, last: str) -> str:
    """Return which of the stages up to the last one has failed, and why; empty if none has."""
    for stage, entry in record.stages.items():
        if entry["state"] == "failed":
            return f"{record.run}: {stage} failed: {entry.get('reason')}"
        if stage == last:
            break
    return ""


def _follow(cluster: Cluster, run: str, stage: str, sightings: Sightings) -> None:
    tail, told = logs.Tail(cluster), ""
    with Progress(stage, 0) as progress:
        while True:
            record = read(cluster, run)
            job = cluster.get("Job", names.job(run, stage, record.hash))
            reason = _look(cluster, job, tail, progress) if job else _before(record)
            state = record.state(stage)
            if state == "succeeded":
                return
            if failure := _failure(record, stage):
                raise RunError(failure)
            held = lease.holder(cluster, run, sightings)
            if job is None and not held:
                raise RunError(f"{run}: {stage} is {state}, and nobody is at work; emopfx run goes on with it")
            if job and jobs.outcome(job)[0] != "running" and not held:
                # Its Job has ended, and whoever would have recorded that is gone.
                return _judge(run, stage, job)
            if reason and reason != told:
                say(f"waiting: {reason}")
            told = reason
            time.sleep(POLL_SECONDS)


def _before(record: RunRecord) -> str:
    """Return what a run waits for that has no Job yet."""
    return next((str(entry["reason"]) for entry in record.stages.values() if "reason" in entry), "")


def _look(cluster: Cluster, job: Object, tail: logs.Tail, progress: Progress) -> str:
    """Show what a Job's pods have printed; return why they don't run, if they don't."""
    found = jobs.pods(cluster, job)
    for line in tail.new_lines(found):
        counts = logs.progress(line)
        if counts and console.is_terminal:
            done, total = counts
            progress.expect(total)
            progress.update(done)
        else:
            say(line.rstrip())
    accounts = pods.accounts(found)
    return accounts[-1].reason if accounts else ""


def _judge(run: str, stage: str, job: Object) -> None:
    state, message = jobs.outcome(job)
    if state == "failed":
        raise RunError(f"{run}: {stage} failed: {message}; emopfx logs shows what its pods said")
    say(f"{run}: {stage} has succeeded, but is not recorded yet; emopfx run does that")


def show_logs(cluster: Cluster, run: str, *, follow: bool) -> None:
    """Print what the pods of a run's Jobs have printed, stage by stage.

    Args:
        cluster: Where.
        run: The run's name.
        follow: Whether to go on until the Jobs have ended.
    """
    sightings = Sightings()
    for stage in _stages(cluster, run):
        _show_logs(cluster, run, stage, sightings, follow=follow)


def _show_logs(cluster: Cluster, run: str, stage: str, sightings: Sightings, *, follow: bool) -> None:
    tail, told, tries = logs.Tail(cluster), "", 0
    while True:
        record = read(cluster, run)
        job = cluster.get("Job", names.job(run, stage, record.hash))
        found = jobs.pods(cluster, job) if job else []
        for line in tail.new_lines(found):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        reason = _why_silent(record, stage, job, found)
        if reason and reason != told:
            say(reason)
        told = reason
        at_work = jobs.outcome(job)[0] == "running" if job else lease.holder(cluster, run, sightings)
        over = not (follow and at_work)
        if over and not tail.problem:
            return
        tries = tries + 1 if over else 0
        if tries == LOG_TRIES:
            raise RunError(tail.problem)
        time.sleep(POLL_SECONDS)


def _why_silent(record: RunRecord, stage: str, job: Object | None, found: list[Object]) -> str:
    """Return why the Job of a stage prints nothing, empty if it does."""
    if job is None:
        yet = "any more" if record.state(stage) == "succeeded" else "yet"
        return _failure(record, stage) or f"{record.run}: there is no Job for {stage} {yet}"
    if not found:
        return f"{record.run}: Job {job['metadata']['name']} has no pod yet"
    accounts = pods.accounts(found)
    return accounts[-1].reason if accounts else ""
