"""Why a release's server is not ready (yet)."""

from dataclasses import replace

from emopfx.errors import InputError, RunError
from emopfx.kubernetes import jobs, names, pods
from emopfx.kubernetes.api import Cluster, Object


class Rollout:
    """Looks at the server of a release.

    Args:
        cluster: Where.
        release: The release.
    """

    def __init__(self, cluster: Cluster, release: str) -> None:
        self._cluster, self._release = cluster, release
        self._refused_by = ""

    def account(self) -> pods.Account | None:
        """Return why the server is not ready, None if it is.

        Raises:
            InputError: If the server says that its settings are wrong.
            RunError: If the release has no server.
        """
        labels = names.selector(names.component(self._release, "server"))
        found = self._cluster.find("Deployment", labels)
        if not found:
            raise RunError(f"release {self._release} in {self._cluster.namespace} has no server")
        if complete(found[0]):
            return None
        for condition in found[0].get("status", {}).get("conditions") or []:
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return pods.Account(f"no pod can be made: {condition.get('message')}", stuck=True)
        return self._of_pods(self._cluster.find("Pod", labels))

    def _of_pods(self, found: list[Object]) -> pods.Account:
        accounts = []
        for pod in found:
            account = pods.account(pod)
            if account and account.crashed is not None:
                return self._of_crash(pod["metadata"]["name"], account)
            accounts += [account] if account else []
        reasons = [account.reason for account in accounts] + pods.pending_claims(self._cluster, found)
        return pods.Account("; ".join(reasons) or "its pods are being made", any(a.stuck for a in accounts))

    def _of_crash(self, pod: str, account: pods.Account) -> pods.Account:
        last = pods.end_of_log(self._cluster, pod)
        # Seen a second time, it is not a pod that an upgrade is about to remove.
        if account.crashed == jobs.BAD_INPUT_EXIT and self._refused_by == pod and last:
            raise InputError(f"the server refused to start: {last.splitlines()[-1].removeprefix('emopfx-server: ')}")
        self._refused_by = pod
        log = f"; the end of its log:\n{last}" if last else ", and has printed nothing"
        return replace(account, reason=account.reason + log)


def complete(deployment: Object) -> bool:
    """Whether all pods of a Deployment are of its newest kind and ready."""
    status, replicas = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    counts = {status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")}
    return status.get("observedGeneration", 0) >= deployment["metadata"]["generation"] and counts == {replicas}
