"""Jobs: made from the suspended CronJobs of a release, read, and stopped."""

import copy
from typing import Any

from emopfx.errors import InputError
from emopfx.kubernetes import names
from emopfx.kubernetes.api import Cluster, Object

# The stages that are Jobs; the others are done by whoever runs the experiment.
STAGES = ("generate", "analyze")
BAD_INPUT_EXIT = 2
# The volume of the templates that holds experiment.yaml, and the key of a run's ConfigMap that goes there.
CONFIG_VOLUME, CONFIG_KEY = "experiment", "run.yaml"
# A Job may go only when its outcome is recorded, so its time to live is set then; until then it is noted here.
TTL_ANNOTATION = "emopfx.dev/ttl-seconds-after-recorded"


def template(cluster: Cluster, release: str, stage: str) -> Object:
    """Return the CronJob that a release has for a stage.

    Raises:
        InputError: If there is none.
    """
    found = cluster.find("CronJob", names.selector(names.component(release, stage)))
    if not found:
        raise InputError(
            f"the namespace {cluster.namespace} has no release {release} of emopfx (no CronJob for {stage}); "
            "--stages deploy installs it"
        )
    return found[0]


def server_url(cron_job: Object) -> str:
    """Return the server's address inside the cluster, which the template of generate tells its Jobs."""
    arguments = _container(cron_job["spec"]["jobTemplate"])["args"]
    return str(arguments[arguments.index("--server") + 1])


def from_template(
    cron_job: Object,
    *,
    name: str,
    labels: dict[str, str],
    run: str | None = None,
    owner: Object | None = None,
    args: list[str] | None = None,
) -> Object:
    """Return a Job made from a CronJob's template.

    Args:
        cron_job: The CronJob.
        name: The Job's name.
        labels: Labels of the Job and of its pods.
        run: The run whose ConfigMap is mounted as the experiment, in place of the template's.
        owner: The object with which the Job goes, such as the run's ConfigMap.
        args: Arguments of the container in place of the template's.
    """
    job: Object = copy.deepcopy(cron_job["spec"]["jobTemplate"])
    metadata = job.get("metadata") or {}
    annotations = dict(metadata.get("annotations") or {})
    ttl = job["spec"].pop("ttlSecondsAfterFinished", None)
    if ttl is not None:
        annotations[TTL_ANNOTATION] = str(ttl)
    pod = job["spec"]["template"]
    pod_metadata = pod.setdefault("metadata", {})
    pod_metadata["labels"] = {**(pod_metadata.get("labels") or {}), **labels}
    for volume in pod["spec"].get("volumes", []):
        if run is not None and volume["name"] == CONFIG_VOLUME:
            items = [{"key": CONFIG_KEY, "path": "experiment.yaml"}]
            volume["configMap"] = {"name": names.config_map(run), "items": items}
    if args is not None:
        _container(job)["args"] = args
    metadata = {
        "name": name,
        "labels": {**(metadata.get("labels") or {}), **labels},
        "annotations": annotations,
        "ownerReferences": [_reference(owner)] if owner else [],
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job["spec"]}


def at_once(job: Object) -> Object:
    """Return a Job that waits in no queue: it is short, and somebody waits for it."""
    labels = {key: value for key, value in job["metadata"]["labels"].items() if key != names.QUEUE_LABEL}
    spec = {key: value for key, value in job["spec"].items() if key != "suspend"}
    return {**job, "metadata": {**job["metadata"], "labels": labels}, "spec": spec}


def _reference(owner: Object) -> dict[str, str]:
    metadata = owner["metadata"]
    return {**{key: owner[key] for key in ("apiVersion", "kind")}, **{key: metadata[key] for key in ("name", "uid")}}


def outcome(job: Object) -> tuple[str, str]:
    """Return a Job's state (running, succeeded or failed) and what the Job controller says about it."""
    for condition in job.get("status", {}).get("conditions") or []:
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            state = "succeeded" if condition["type"] == "Complete" else "failed"
            return state, condition.get("message") or condition.get("reason") or ""
    return "running", ""


def pods(cluster: Cluster, job: Object) -> list[Object]:
    """Return a Job's pods, oldest first; not those that a deleted Job of the same name has left."""
    metadata = job["metadata"]
    found = cluster.find("Pod", f"job-name={metadata['name']}")
    return [pod for pod in found if _owner(pod) == metadata["uid"]]


def refusal(job_pods: list[Object]) -> str | None:
    """Return the sentence with which a pod refused its config (exit code 2), None if none did."""
    for pod in job_pods:
        ended = _terminated(pod)
        if ended and ended["exitCode"] == BAD_INPUT_EXIT:
            return last_words(pod) or "the config was refused"
    return None


def last_words(pod: Object) -> str:
    """Return the sentence with which an ended pod said what was wrong, empty if it said nothing.

    The pods' terminationMessagePolicy puts the end of their log into their status.
    """
    message = (_terminated(pod) or {}).get("message") or ""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    said = [line.removeprefix("emopfx: ") for line in lines if line.startswith("emopfx: ")]
    return (said or lines or [""])[-1]


def fail_now(cluster: Cluster, name: str) -> None:
    """Let a Job fail without another try; its ended pods and their logs stay."""
    cluster.patch("Job", name, {"spec": {"backoffLimit": 0}})


def start_ttl(cluster: Cluster, job: Object) -> None:
    """Let an ended Job be deleted after its time to live, now that its outcome is recorded."""
    ttl = (job["metadata"].get("annotations") or {}).get(TTL_ANNOTATION)
    if ttl is not None and job["spec"].get("ttlSecondsAfterFinished") is None:
        cluster.patch("Job", job["metadata"]["name"], {"spec": {"ttlSecondsAfterFinished": int(ttl)}})


def _owner(pod: Object) -> str | None:
    return next((owner["uid"] for owner in pod["metadata"].get("ownerReferences") or []), None)


def _terminated(pod: Object) -> dict[str, Any] | None:
    for status in pod.get("status", {}).get("containerStatuses") or []:
        ended: dict[str, Any] | None = status.get("state", {}).get("terminated")
        if ended:
            return ended
    return None


def _container(template: Object) -> Object:
    container: Object = template["spec"]["template"]["spec"]["containers"][0]
    return container
