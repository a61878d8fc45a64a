"""Runs against a cluster in memory; tests/e2e has them on a real one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from emopfx import cluster_config, cluster_run, config_identity
from emopfx.cluster_run import ClusterRun, Options
from emopfx.errors import InputError, RunError
from emopfx.kubernetes import follow, jobs, lease, names
from emopfx.kubernetes.configmap import RunRecord
from emopfx.kubernetes.lease import Held, Sightings
from emopfx.targets.cluster import Deployment
from emopfx.watch import Watcher
from tests.emopfx.kubernetes.answers import installed
from tests.emopfx.kubernetes.memory import Memory

TEXT = "name: nano\nmodel: {name: tiny, dtype: float32}\n"
STAGES = ["configure", "generate", "analyze"]


def digest(text: str = TEXT) -> str:
    return config_identity.config_hash(cluster_config.identity(cluster_config.read(text, "x.yaml")))


def options(**changes: Any) -> Options:
    return Options("emopfx", Deployment(""), 60.0, **changes)


def planned(cluster: Memory, text: str = TEXT, **changes: Any) -> ClusterRun:
    return ClusterRun(cluster, cluster_config.read(text, "x.yaml"), text, STAGES, options(**changes))


def run(cluster: Memory, text: str = TEXT, **changes: Any) -> None:
    cluster_run.run(cluster, cluster_config.read(text, "x.yaml"), text, STAGES, options(**changes))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    for module in (cluster_run, follow):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.0)
    with installed() as cluster:
        yield cluster


def recorded(cluster: Memory, name: str = "nano") -> RunRecord:
    found = RunRecord.read(cluster, name)
    assert found is not None
    return found


def refuse(cluster: Memory, job: str, sentence: str) -> None:
    """Let a Job's pod refuse its config."""
    owner = [{"uid": cluster.objects["Job", job]["metadata"]["uid"]}]
    metadata = {"name": f"{job}-pod", "labels": {"job-name": job}, "ownerReferences": owner}
    ended = {"exitCode": jobs.BAD_INPUT_EXIT, "message": f"emopfx: {sentence}"}
    status = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": ended}}]}
    cluster.create({"kind": "Pod", "metadata": metadata, "status": status})


@contextmanager
def operated(cluster: Memory, end: str = "Complete") -> Iterator[Watcher]:
    """An operator at work, in a cluster whose Jobs end at once."""
    watcher, stopped = Watcher(cluster, "emopfx"), threading.Event()

    def work() -> None:
        while not stopped.wait(0.02):
            watcher.step()
            for kind, name in list(cluster.objects):
                if kind == "Job" and watching.is_set():
                    cluster.end(name, end)

    watching = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    threading.Timer(0.3, watching.set).start()
    try:
        yield watcher
    finally:
        stopped.set()
        thread.join()
        watcher.close()


def given(cluster: Memory) -> None:
    cluster.give("emopfx-nano", TEXT, "nano")


def taken_up(cluster: Memory) -> bool:
    return lease.holder(cluster, "nano", Sightings()).startswith(lease.OPERATOR)


class TestTheOperatorIsAtWork:
    def test_a_run_of_the_same_config_follows_it(self, cluster: Memory, capsys: pytest.CaptureFixture[str]) -> None:
        given(cluster)
        with operated(cluster):
            while not taken_up(cluster):
                pass
            run(cluster)
        said = capsys.readouterr().err
        assert "nano: the operator in the cluster works on it; this follows it" in said
        assert "nano: nothing to do, all stages have succeeded" in said
        assert {recorded(cluster).state(stage) for stage in STAGES} == {"succeeded"}

    def test_and_fails_as_it_does(self, cluster: Memory) -> None:
        given(cluster)
        with operated(cluster, "Failed"):
            while not taken_up(cluster):
                pass
            with pytest.raises(RunError, match=r"nano: generate failed: Job nano-generate-.* failed"):
                run(cluster)

    def test_another_config_is_not_followed(self, cluster: Memory) -> None:
        given(cluster)
        watcher = Watcher(cluster, "emopfx")
        watcher.step()
        with pytest.raises(Held, match=r"operator_.* works on nano "), _renewing(watcher):
            run(cluster, f"{TEXT}generation: {{seed: 3}}\n")
        watcher.close()


@contextmanager
def _renewing(watcher: Watcher) -> Iterator[None]:
    """Let an operator renew its Leases, and do nothing else."""
    stopped = threading.Event()

    def renew() -> None:
        while not stopped.wait(0.02):
            for held, _ in watcher._held.values():
                held._lease.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


class TestACommandIsAtWork:
    def test_another_one_is_refused_when_that_is_seen_to_be_alive(self, cluster: Memory) -> None:
        first = planned(cluster, role="run")
        with first:
            # Another process: this one would be its own successor.
            cluster.patch("Lease", "emopfx-nano", {"spec": {"holderIdentity": "run_other_1"}})
            touching = threading.Timer(0.1, cluster.patch, ("Lease", "emopfx-nano", {"spec": {"renewTime": "later"}}))
            touching.start()
            with pytest.raises(Held, match="run_other_1 works on nano "):
                run(cluster)
            touching.join()

    def test_a_dead_one_is_succeeded(self, cluster: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = {"holderIdentity": "run_other_1", "leaseDurationSeconds": 1}
        cluster.create({"kind": "Lease", "metadata": {"name": "emopfx-nano"}, "spec": spec})
        monkeypatch.setattr(cluster_run, "_hold", _entering)
        run(cluster)
        assert recorded(cluster).state("generate") == "pending"


def _entering(cluster: Memory, planned: ClusterRun) -> None:
    with planned:
        pass


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (0, "nano: configure was under way, and there is no Job yet that goes on by itself"),
        (2, "nano: Jobs in the cluster go on; emopfx monitor --name nano --target kubernetes -n research follows them"),
    ],
)
def test_ctrl_c_says_what_goes_on(
    cluster: Memory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    passes: int,
    said: str,
) -> None:
    advance, left = ClusterRun.advance, [*range(passes)]

    def interrupted(self: ClusterRun) -> bool:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return advance(self)

    monkeypatch.setattr(ClusterRun, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(cluster)
    assert said in capsys.readouterr().err
    assert cluster.get("Lease", "emopfx-nano") is None


def test_results_of_another_content_can_be_kept_beside_the_new_ones(cluster: Memory) -> None:
    """The Jobs know the content of a file, whose path is all that is known here."""
    sentence = "/data/results/nano holds results of another config (dataset); keep both with --new-revision"
    with planned(cluster) as held:
        held.advance()
        held.advance()
        refuse(cluster, names.job("nano", "generate", digest()), sentence)
        with pytest.raises(InputError, match="holds results of another config"):
            held.advance()
    assert planned(cluster).name == "nano"
    revision = names.revision("nano", digest())
    assert planned(cluster, new_revision=True).name == revision
    with planned(cluster, new_revision=True) as held:
        held.advance()
    # Asked again, it goes on with what it began.
    assert planned(cluster, new_revision=True).name == revision
    assert recorded(cluster, revision).given.startswith(f"name: {revision}\n")


def test_a_new_revision_of_what_went_well_is_the_same_run(cluster: Memory) -> None:
    with planned(cluster) as held:
        held.record.stages = {stage: {"state": "succeeded"} for stage in STAGES}
        held.record.save(cluster)
    assert planned(cluster, new_revision=True).name == "nano"


def test_a_revision_that_is_asked_for_is_not_deleted(cluster: Memory) -> None:
    changed = f"{TEXT}generation: {{seed: 3}}\n"
    given(cluster)
    revision = names.revision("nano", digest(changed))
    cluster_config.refuse_to_delete(cluster, revision)
    cluster_config.refuse_to_delete(cluster, "nano")
    cluster.give("emopfx-nano", changed, "nano")
    cluster.give("emopfx-broken", "name: [", "broken")
    with pytest.raises(InputError, match=f"^{revision} is what the ConfigMap emopfx-nano asks for, so that"):
        cluster_config.refuse_to_delete(cluster, revision)
    cluster_config.refuse_to_delete(cluster, "nano")
