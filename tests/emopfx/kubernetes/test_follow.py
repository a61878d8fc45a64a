import json
import threading
from collections.abc import Callable
from functools import partial

import pytest

from emopfx.errors import RunError
from emopfx.kubernetes import follow, names
from emopfx.kubernetes.api import Object
from tests.emopfx.kubernetes.memory import Memory

JOB = names.job("nano", "generate", "0123456789")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(follow, "TAKE_UP_SECONDS", 0.5)
    return Memory()


def record(cluster: Memory, **states: str) -> None:
    """Keep a record, as whoever takes a run up does."""
    stages = {stage: {"state": state} for stage, state in states.items()}
    cluster.patch("ConfigMap", "emopfx-nano", {"data": {"hash": "0123456789", "stages.json": json.dumps(stages)}})


def ended(cluster: Memory, log: str) -> Object:
    """A Job that has ended, with what its pod has printed."""
    cluster.create({"kind": "Job", "metadata": {"name": JOB}})
    cluster.end(JOB)
    owner = [{"uid": cluster.objects["Job", JOB]["metadata"]["uid"]}]
    metadata = {"name": "p", "labels": {"job-name": JOB}, "ownerReferences": owner, "creationTimestamp": "now"}
    cluster.logs["p"] = log
    return cluster.create({"kind": "Pod", "metadata": metadata, "status": {"phase": "Succeeded"}})


@pytest.mark.parametrize("look", [follow.monitor, partial(follow.show_logs, follow=False)])
def test_the_operator_is_given_a_minute(
    cluster: Memory, capsys: pytest.CaptureFixture[str], look: Callable[[Memory, str], None]
) -> None:
    cluster.give("emopfx-nano", "name: nano", "nano")
    timer = threading.Timer(0.1, record, (cluster,), {"configure": "succeeded", "generate": "succeeded"})
    timer.start()
    look(cluster, "nano")
    timer.join()
    assert "waiting: nano was applied, and nobody has taken it up yet" in capsys.readouterr().err


def test_and_no_longer(cluster: Memory) -> None:
    cluster.give("emopfx-nano", "name: nano", "nano")
    with pytest.raises(RunError, match="nano was applied, and nobody has taken it up"):
        follow.monitor(cluster, "nano")


def test_logs_are_whole(cluster: Memory, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.give("emopfx-nano", "name: nano", "nano")
    record(cluster, generate="succeeded")
    lines = [f"line {number}" for number in range(2000)]
    ended(cluster, "\n".join(f"2026-01-01T00:00:00.{number:09d}Z {line}" for number, line in enumerate(lines)))
    follow.show_logs(cluster, "nano", follow=False)
    assert capsys.readouterr().out.splitlines() == lines


class Unreadable(Memory):
    """A cluster whose logs can't be read for a while."""

    failures = 3

    def log(self, pod: str, *, last: int | None = None, seconds: int | None = None, previous: bool = False) -> str:
        self.failures -= 1
        if self.failures >= 0:
            raise RunError(f"the log of pod {pod} can't be read: no route to host")
        return super().log(pod, last=last, seconds=seconds, previous=previous)


@pytest.mark.parametrize("failures", [3, 100])
def test_a_log_that_can_t_be_read_is_not_an_empty_one(
    cluster: Memory, capsys: pytest.CaptureFixture[str], failures: int
) -> None:
    away = Unreadable()
    away.failures = failures
    away.give("emopfx-nano", "name: nano", "nano")
    record(away, generate="succeeded")
    ended(away, "2026-01-01T00:00:00Z a line")
    if failures > follow.LOG_TRIES:
        with pytest.raises(RunError, match="the log of pod p can't be read: no route to host"):
            follow.show_logs(away, "nano", follow=False)
    else:
        follow.show_logs(away, "nano", follow=False)
        assert capsys.readouterr().out == "a line\n"
