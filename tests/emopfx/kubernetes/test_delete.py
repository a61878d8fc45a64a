import threading

import pytest

from emopfx.errors import InputError
from emopfx.kubernetes import delete, names
from emopfx.kubernetes.api import Conflict, Object
from tests.emopfx.kubernetes.memory import Memory

LABELS = {names.EXPERIMENT_LABEL: "nano"}


def ended_at_once(cluster: Memory) -> list[Object]:
    """Let Jobs end well as soon as they are there; return them as they are asked for."""
    create, asked = cluster.create, []

    def creating(body: Object) -> Object:
        made = create(body)
        if body["kind"] == "Job":
            asked.append(body)
            threading.Timer(0.05, cluster.end, (body["metadata"]["name"],)).start()
        return made

    cluster.create = creating  # type: ignore[method-assign]
    return asked


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setattr(delete, "POLL_SECONDS", 0.01)
    cluster = Memory()
    cluster.create({"kind": "ConfigMap", "metadata": {"name": "emopfx-nano", "labels": LABELS}, "data": {}})
    return cluster


def test_without_a_release_nothing_is_deleted_where_the_data_is_to_go(cluster: Memory) -> None:
    with pytest.raises(InputError, match="has no release other of emopfx"):
        delete.delete(cluster, "nano", "other", data=True)
    assert ("ConfigMap", "emopfx-nano") in cluster.objects
    delete.delete(cluster, "nano", "other", data=False)
    assert ("ConfigMap", "emopfx-nano") not in cluster.objects


def test_the_job_that_deletes_waits_in_no_queue(cluster: Memory) -> None:
    cluster.install("emopfx", "http://server:8000", suspend=True)
    template = cluster.objects["CronJob", "emopfx-generate"]["spec"]["jobTemplate"]
    template["metadata"]["labels"][names.QUEUE_LABEL] = "research"
    made = ended_at_once(cluster)
    delete.delete(cluster, "nano", "emopfx", data=True)
    [job] = made
    assert job["metadata"]["name"] == "nano-delete"
    assert "suspend" not in job["spec"]
    assert names.QUEUE_LABEL not in job["metadata"]["labels"]
    assert not [key for key in cluster.objects if key[0] != "CronJob"]


def test_a_lost_answer_is_no_conflict(cluster: Memory) -> None:
    cluster.install("emopfx", "http://server:8000")
    ended_at_once(cluster)
    create = cluster.create

    def forgetful(body: Object) -> Object:
        create(body)
        raise Conflict("could not create Job nano-delete: already exists")

    cluster.create = forgetful  # type: ignore[method-assign]
    delete.delete(cluster, "nano", "emopfx", data=True)
    assert ("Job", "nano-delete") not in cluster.objects
