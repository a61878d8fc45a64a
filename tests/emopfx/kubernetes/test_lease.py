from datetime import UTC, datetime, timedelta

import pytest

from emopfx.kubernetes.lease import DURATION_SECONDS, expired

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("age", "over"), [(0, False), (DURATION_SECONDS - 1, False), (DURATION_SECONDS + 1, True)])
def test_a_lease_expires(age: float, over: bool) -> None:
    renewed = (NOW - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": "a", "renewTime": renewed, "leaseDurationSeconds": DURATION_SECONDS}
    assert expired({"spec": spec}, NOW) is over


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": "a"}, {"renewTime": "2026-01-01T00:00:00.000000Z"}])
def test_a_lease_that_nobody_holds_is_free(spec: dict[str, str]) -> None:
    assert expired({"spec": spec}, NOW)
