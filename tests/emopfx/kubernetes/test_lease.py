from typing import Any

import pytest

from emopfx.kubernetes import lease
from emopfx.kubernetes.api import Conflict, Object
from emopfx.kubernetes.lease import DURATION_SECONDS, Held, Lease, Sightings, holder
from tests.emopfx.kubernetes.memory import Memory


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock.monotonic)
    return clock


def held(cluster: Memory, **spec: Any) -> None:
    """Let somebody else have the Lease, as any client may write it."""
    other = {"holderIdentity": "run_other_1", "leaseDurationSeconds": DURATION_SECONDS, **spec}
    cluster.create({"kind": "Lease", "metadata": {"name": "emopfx-nano"}, "spec": other})


def mine(cluster: Memory, sightings: Sightings, role: str = "run") -> Lease:
    return Lease(cluster, "nano", role, sightings)


@pytest.mark.parametrize("renewed", ["2000-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z", "no time", None])
def test_other_machines_clocks_do_not_count(clock: Clock, renewed: str | None) -> None:
    cluster, sightings = Memory(), Sightings()
    held(cluster, renewTime=renewed)
    with pytest.raises(Held, match=r"^run_other_1 works on nano ") as refused:
        mine(cluster, sightings).renew()
    assert (refused.value.alive, refused.value.operator) == (False, False)
    clock.now += DURATION_SECONDS - 1
    assert holder(cluster, "nano", sightings) == "run_other_1"
    clock.now += 2
    assert holder(cluster, "nano", sightings) == ""
    with mine(cluster, sightings):
        assert holder(cluster, "nano", sightings) == lease.identity()
    assert cluster.get("Lease", "emopfx-nano") is None


def test_a_holder_that_renews_is_alive(clock: Clock) -> None:
    cluster, sightings = Memory(), Sightings()
    held(cluster)
    for _ in range(3):
        holder(cluster, "nano", sightings)
        clock.now += DURATION_SECONDS - 1
        cluster.patch("Lease", "emopfx-nano", {"spec": {"renewTime": str(clock.now)}})
    with pytest.raises(Held) as refused:
        mine(cluster, sightings).renew()
    assert refused.value.alive


def test_the_operator_says_who_it_is() -> None:
    cluster = Memory()
    with mine(cluster, Sightings(), lease.OPERATOR), pytest.raises(Held) as refused:
        mine(cluster, Sightings()).renew()
    assert refused.value.operator


@pytest.mark.parametrize("spec", [None, {}, {"holderIdentity": ""}, {"renewTime": "2026-01-01T00:00:00.000000Z"}])
def test_a_lease_that_nobody_holds_is_free(spec: Object | None) -> None:
    cluster = Memory()
    cluster.create({"kind": "Lease", "metadata": {"name": "emopfx-nano"}, "spec": spec})
    with mine(cluster, Sightings()):
        assert cluster.objects["Lease", "emopfx-nano"]["metadata"]["labels"] == {"emopfx.dev/experiment": "nano"}


def test_a_lost_answer_is_no_competitor() -> None:
    class Forgetful(Memory):
        def create(self, body: Object) -> Object:
            super().create(body)
            raise Conflict("already exists")

    with mine(Forgetful(), Sightings()):
        pass


def test_who_was_faster_has_it() -> None:
    class Slow(Memory):
        def create(self, body: Object) -> Object:
            super().create({**body, "spec": {"holderIdentity": "operator_pod_7"}})
            raise Conflict("already exists")

    with pytest.raises(Held, match="has just begun to work on nano") as refused:
        mine(Slow(), Sightings()).renew()
    assert (refused.value.alive, refused.value.operator) == (True, True)
