"""A Lease says who works on a run, so that nobody else does at the same time.

Machines' clocks may differ, so the times that holders write into it are for people. Whoever wants a Lease looks at it
for as long as it is good for, by its own clock: a holder that has not renewed it meanwhile is gone.
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple

from emopfx.errors import RunError
from emopfx.kubernetes import names
from emopfx.kubernetes.api import Cluster, Conflict, Object

# Whoever is killed is succeeded after this long.
DURATION_SECONDS = 60
RENEW_SECONDS = 5.0
OPERATOR = "operator"


class Held(RunError):
    """Somebody else works on the run.

    Attributes:
        alive: Whether they were seen to renew their Lease; otherwise they may be gone, which time tells.
        operator: Whether it is the operator in the cluster, and not a command like this one.
    """

    def __init__(self, sentence: str, *, alive: bool, operator: bool) -> None:
        super().__init__(sentence)
        self.alive, self.operator = alive, operator


class Sighting(NamedTuple):
    """What a process has seen of a Lease: its version, since when, and whether it was another one before."""

    version: str
    since: float
    alive: bool


class Sightings:
    """What a process has seen of Leases, by its own clock."""

    def __init__(self) -> None:
        self._seen: dict[str, Sighting] = {}

    def look(self, lease: Object) -> Sighting:
        """Take note of a Lease as it is now."""
        name, version = lease["metadata"]["name"], lease["metadata"]["resourceVersion"]
        before = self._seen.get(name)
        if before is None or before.version != version:
            self._seen[name] = Sighting(version, time.monotonic(), alive=before is not None)
        return self._seen[name]

    def expired(self, lease: Object) -> bool:
        """Whether nobody holds a Lease, or has renewed it for as long as it is good for."""
        return not holder_of(lease) or time.monotonic() - self.look(lease).since > _seconds(lease)


def identity(role: str = "run") -> str:
    """Return a name for this process: in a cluster its pod's, so that a restarted container is its own successor."""
    return f"{role}_{socket.gethostname()}_{os.getpid()}"


class Lease:
    """A run's Lease; use it as a context manager, and `renew` it often.

    Args:
        cluster: Where.
        run: The run's name.
        role: What this process is: run, or operator.
        sightings: What it has seen of other processes' Leases.

    Raises:
        Held: If somebody else has it (on entering), or has taken it since (on renewing).
    """

    def __init__(self, cluster: Cluster, run: str, role: str, sightings: Sightings) -> None:
        self._cluster, self._run, self._name = cluster, run, names.config_map(run)
        self._identity, self._sightings = identity(role), sightings
        self._renewed = 0.0

    def __enter__(self) -> "Lease":
        self._renewed = 0.0
        self.renew()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        found = self._cluster.get("Lease", self._name)
        if found and holder_of(found) == self._identity:
            version = found["metadata"]["resourceVersion"]
            # Whoever has changed it since has it now.
            with suppress(Conflict):
                self._cluster.delete("Lease", self._name, {"preconditions": {"resourceVersion": version}})

    def renew(self) -> None:
        """Take the Lease, or keep it; does nothing if that was done just now."""
        if self._renewed and time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        found = self._cluster.get("Lease", self._name)
        try:
            self._write(found)
        except Conflict:
            # Somebody was faster, unless it was this process, and the answer to its first try was lost.
            found = self._cluster.get("Lease", self._name)
            if found is None or holder_of(found) != self._identity:
                sentence = f"another process has just begun to work on {self._run}"
                raise Held(sentence, alive=True, operator=_is_operator(found or {})) from None
        self._renewed = time.monotonic()

    def _write(self, found: Object | None) -> None:
        if found is None:
            self._cluster.create(self._body({"name": self._name}))
        elif holder_of(found) == self._identity or self._sightings.expired(found):
            version = {"resourceVersion": found["metadata"]["resourceVersion"]}
            self._cluster.replace(self._body({"name": self._name, **version}))
        else:
            raise Held(self._held(found), alive=self._sightings.look(found).alive, operator=_is_operator(found))

    def _body(self, metadata: Object) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now}
        labels = {names.EXPERIMENT_LABEL: self._run}
        return {"kind": "Lease", "metadata": {**metadata, "labels": labels}, "spec": spec}

    def _held(self, found: Object) -> str:
        renewed = _spec(found).get("renewTime")
        return (
            f"{holder_of(found)} works on {self._run} (its Lease was renewed {renewed}, and ends {_seconds(found):.0f} "
            "s after that); emopfx monitor follows it"
        )


def holder_of(lease: Object) -> str:
    """Return who holds a Lease, empty if nobody does."""
    return str(_spec(lease).get("holderIdentity") or "")


def holder(cluster: Cluster, run: str, sightings: Sightings) -> str:
    """Return who works on a run, empty if nobody does or is seen to."""
    found = cluster.get("Lease", names.config_map(run))
    return "" if found is None or sightings.expired(found) else holder_of(found)


def _is_operator(lease: Object) -> bool:
    return holder_of(lease).startswith(f"{OPERATOR}_")


def _seconds(lease: Object) -> float:
    seconds = _spec(lease).get("leaseDurationSeconds")
    return float(seconds) if isinstance(seconds, int) and seconds > 0 else DURATION_SECONDS


def _spec(lease: Object) -> Mapping[str, Any]:
    return lease.get("spec") or {}
