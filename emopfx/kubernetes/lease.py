"""A Lease says who works on a run, so that nobody else does at the same time."""

import os
import socket
import time
from datetime import UTC, datetime
from types import TracebackType

from emopfx.errors import RunError
from emopfx.kubernetes import names
from emopfx.kubernetes.api import Cluster, Conflict, Object

# Whoever is killed is succeeded after this long; clocks may differ by less than that.
DURATION_SECONDS = 60
RENEW_SECONDS = 15.0


class Held(RunError):
    """Somebody else works on the run."""


def identity() -> str:
    """Return a name for this process: in a cluster its pod's, so that a restarted container is its own successor."""
    return f"{socket.gethostname()}_{os.getpid()}"


class Lease:
    """A run's Lease; use it as a context manager, and `renew` it often.

    Raises:
        Held: If somebody else has it (on entering), or has taken it since (on renewing).
    """

    def __init__(self, cluster: Cluster, run: str) -> None:
        self._cluster, self._run, self._name = cluster, run, names.config_map(run)
        self._renewed = 0.0

    def __enter__(self) -> "Lease":
        self.renew()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        found = self._cluster.get("Lease", self._name)
        if found and found["spec"].get("holderIdentity") == identity():
            version = found["metadata"]["resourceVersion"]
            self._cluster.delete("Lease", self._name, {"preconditions": {"resourceVersion": version}})

    def renew(self) -> None:
        """Take the Lease, or keep it; does nothing if that was done just now."""
        if self._renewed and time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        found = self._cluster.get("Lease", self._name)
        try:
            if found is None:
                self._cluster.create(self._body({"name": self._name, "labels": {names.EXPERIMENT_LABEL: self._run}}))
            elif found["spec"].get("holderIdentity") == identity() or expired(found, datetime.now(UTC)):
                metadata = {key: found["metadata"][key] for key in ("name", "labels", "resourceVersion")}
                self._cluster.replace(self._body(metadata))
            else:
                raise Held(self._held(found))
        except Conflict:
            raise Held(f"another process has just begun to work on {self._run}") from None
        self._renewed = time.monotonic()

    def _body(self, metadata: Object) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": identity(), "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now}
        return {"kind": "Lease", "metadata": metadata, "spec": spec}

    def _held(self, found: Object) -> str:
        holder, until = found["spec"].get("holderIdentity"), found["spec"]["leaseDurationSeconds"]
        return (
            f"{holder} works on {self._run} (its Lease was renewed {found['spec']['renewTime']}, and ends {until} s "
            "after that); emopfx monitor follows it"
        )


def expired(lease: Object, now: datetime) -> bool:
    """Whether a Lease's holder has not renewed it in time."""
    spec = lease["spec"]
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return True
    age = now - datetime.fromisoformat(spec["renewTime"])
    seconds: int = spec.get("leaseDurationSeconds", DURATION_SECONDS)
    return age.total_seconds() > seconds


def holder(cluster: Cluster, run: str) -> str | None:
    """Return who works on a run, None if nobody does."""
    found = cluster.get("Lease", names.config_map(run))
    if found is None or expired(found, datetime.now(UTC)):
        return None
    return str(found["spec"]["holderIdentity"])
