from typing import Any

import pytest

from emopfx.kubernetes.pods import account

SCHEDULED = {"type": "PodScheduled", "status": "True"}
READY = {"type": "Ready", "status": "True"}


def pod(*conditions: dict[str, str], phase: str = "Pending", deleted: bool = False, **container: Any) -> dict[str, Any]:
    containers = [{"image": "server:1", **container}] if container else None
    metadata = {"name": "p", **({"deletionTimestamp": "now"} if deleted else {})}
    return {
        "metadata": metadata,
        "status": {"phase": phase, "conditions": list(conditions), "containerStatuses": containers},
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


@pytest.mark.parametrize(
    ("given", "reason", "stuck", "crashed"),
    [
        (pod(), "pod p is not ready yet", False, None),
        (pod(deleted=True, state=waiting("CrashLoopBackOff")), "pod p is being deleted", False, None),
        (
            pod({"type": "PodScheduled", "status": "False", "message": "0/1 nodes: 1 Insufficient nvidia.com/gpu."}),
            "pod p finds no node: 0/1 nodes: 1 Insufficient nvidia.com/gpu.",
            False,
            None,
        ),
        (pod(SCHEDULED, state=waiting("ContainerCreating")), "pod p is being made", False, None),
        (pod(SCHEDULED, state=waiting("Odd")), "pod p waits: Odd", False, None),
        (
            pod(SCHEDULED, state=waiting("ImagePullBackOff", "Back-off pulling image")),
            "pod p: ImagePullBackOff: Back-off pulling image",
            True,
            None,
        ),
        (
            pod(
                SCHEDULED,
                state=waiting("CrashLoopBackOff"),
                lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            ),
            "pod p crashes again and again (exit code 137, OOMKilled)",
            True,
            137,
        ),
        (
            pod(SCHEDULED, phase="Running", state={"terminated": {"exitCode": 2, "reason": "Error"}}),
            "pod p ended (exit code 2) and is started again",
            False,
            2,
        ),
        (
            pod(SCHEDULED, phase="Running", state={"running": {}}, lastState={"terminated": {"exitCode": 2}}),
            "pod p ended (exit code 2) and is started again",
            False,
            2,
        ),
        (pod(SCHEDULED, phase="Running", state={"running": {}}), "pod p is not ready yet", False, None),
    ],
)
def test_why_a_pod_does_not_run(given: dict[str, Any], reason: str, stuck: bool, crashed: int | None) -> None:
    found = account(given)
    assert found is not None
    assert (found.reason, found.stuck, found.crashed) == (reason, stuck, crashed)


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed"])
def test_nothing_to_say(phase: str) -> None:
    ready = [SCHEDULED, READY] if phase == "Running" else [SCHEDULED]
    assert account(pod(*ready, phase=phase, state={"running": {}})) is None
