"""Why a pod does not run (yet), in one sentence."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from emopfx.errors import RunError
from emopfx.kubernetes import logs
from emopfx.kubernetes.api import Cluster, Object

# These can only end well if somebody mends something; the others pass by themselves, or with a new node.
STUCK = {
    *("ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"),
}
STARTING = {"ContainerCreating", "PodInitializing"}
LOG_LINES = 10


@dataclass(frozen=True)
class Account:
    """Why a pod does not run.

    Attributes:
        reason: A sentence, and perhaps the end of a log after it.
        stuck: Whether that can usually only be mended by somebody.
        crashed: With which exit code its container ended the last time, if it did.
    """

    reason: str
    stuck: bool = False
    crashed: int | None = None


def accounts(found: Iterable[Object]) -> list[Account]:
    """Return why some of these pods are not ready, in their order."""
    return [said for pod in found if (said := account(pod))]


def account(pod: Object) -> Account | None:
    """Return why a pod is not ready, None if it is, or has ended."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    if pod["metadata"].get("deletionTimestamp"):
        return Account(f"pod {name} is being deleted")
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return Account(f"pod {name} finds no node: {scheduled.get('message') or scheduled.get('reason')}")
    for container in status.get("containerStatuses") or []:
        found = _container_account(name, container)
        if found:
            return found
    if conditions.get("Ready", {}).get("status") == "True":
        return None
    ends = [container.get("lastState", {}).get("terminated") for container in status.get("containerStatuses") or []]
    again = next((end for end in ends if end), None)
    if again:
        return Account(f"pod {name} ended ({_end(again)}) and is started again", crashed=again["exitCode"])
    return Account(f"pod {name} is not ready yet")


def _container_account(pod: str, container: Object) -> Account | None:
    state = container.get("state", {})
    waiting, ended = state.get("waiting"), state.get("terminated")
    crashed = ended or container.get("lastState", {}).get("terminated")
    if waiting and waiting.get("reason") in STUCK:
        if waiting["reason"] == "CrashLoopBackOff" and crashed:
            reason = f"pod {pod} crashes again and again ({_end(crashed)})"
            return Account(reason, stuck=True, crashed=crashed["exitCode"])
        message = waiting.get("message") or f"image {container['image']}"
        return Account(f"pod {pod}: {waiting['reason']}: {message}", stuck=True)
    if waiting:
        known = waiting.get("reason") in STARTING
        return Account(f"pod {pod} is being made" if known else f"pod {pod} waits: {waiting.get('reason')}")
    if ended:
        return Account(f"pod {pod} ended ({_end(ended)}) and is started again", crashed=ended["exitCode"])
    return None


def _end(ended: Object) -> str:
    reason = ended.get("reason")
    return f"exit code {ended['exitCode']}" + (f", {reason}" if reason not in (None, "Error", "Completed") else "")


def end_of_log(cluster: Cluster, pod: str) -> str:
    """Return the last lines of a pod that crashes: of its last try if the present one has said nothing."""
    for previous in (False, True):
        with suppress(RunError):
            if text := cluster.log(pod, last=LOG_LINES, previous=previous):
                return "\n".join(line for _, line in logs.timed(text))
    return ""


def pending_claims(cluster: Cluster, pods: Iterable[Object]) -> list[str]:
    """Return a sentence about every claim of these pods that is not bound."""
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods
        for volume in pod["spec"].get("volumes") or []
        if "persistentVolumeClaim" in volume
    }
    found = {name: cluster.get("PersistentVolumeClaim", name) for name in sorted(claims)}
    return [sentence for name, claim in found.items() if (sentence := _claim(claim, name))]


def _claim(claim: Object | None, name: str) -> str | None:
    if claim is None:
        return f"there is no claim {name}"
    phase = claim.get("status", {}).get("phase")
    if phase == "Bound":
        return None
    storage_class = claim["spec"].get("storageClassName") or "no storage class"
    return f"claim {name} ({storage_class}, {claim['spec']['resources']['requests']['storage']}) is {phase or 'new'}"
