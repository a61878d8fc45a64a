from contextlib import nullcontext

import pytest

from emopfx.errors import RunError
from emopfx.kubernetes.pods import Account
from emopfx.targets import waiting
from emopfx.targets.waiting import Waiting

ENDED = Account("pod p ended (exit code 1) and is started again", crashed=1)
OTHER = Account("pod p is not ready yet")


def test_a_reason_is_new_once_whatever_a_log_adds() -> None:
    since = Waiting(60)
    assert since.is_new(Account("pod p is being made"))
    assert since.is_new(Account("pod p crashes\nlog, 12:00"))
    assert not since.is_new(Account("pod p crashes\nlog, 12:01"))
    assert not since.is_new(Account("pod p is being made"))


def test_waits_no_longer_than_its_patience_unless_it_may() -> None:
    since = Waiting(-1)
    since.go_on(Account("no node is free"), forever=True)
    with pytest.raises(RunError, match=r"^not ready after -1 s: no node is free$"):
        since.go_on(Account("no node is free"), forever=False)


def test_does_not_wait_for_what_somebody_has_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "STUCK_SECONDS", -1)
    with pytest.raises(RunError, match=r"^no such image$"):
        Waiting(60).go_on(Account("no such image", stuck=True), forever=True)


def test_says_of_a_stuck_pod_what_says_most(monkeypatch: pytest.MonkeyPatch) -> None:
    since = Waiting(60)
    since.go_on(Account("ErrImagePull: there is no such image", stuck=True), forever=False)
    monkeypatch.setattr(waiting, "STUCK_SECONDS", -1)
    with pytest.raises(RunError, match=r"^ErrImagePull: there is no such image$"):
        since.go_on(Account("ImagePullBackOff", stuck=True), forever=False)


@pytest.mark.parametrize(
    ("between", "stuck"), [(Account("pod p ended (exit code 1) and is started again", crashed=1), True), (OTHER, False)]
)
def test_what_crashes_stays_stuck_between_its_tries(
    monkeypatch: pytest.MonkeyPatch, between: Account, stuck: bool
) -> None:
    since = Waiting(60)
    since.go_on(Account("pod p crashes again and again", stuck=True, crashed=1), forever=False)
    monkeypatch.setattr(waiting, "STUCK_SECONDS", -1)
    with pytest.raises(RunError, match=r"again and again") if stuck else nullcontext():
        since.go_on(between, forever=False)
