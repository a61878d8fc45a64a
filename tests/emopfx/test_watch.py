import json
from collections.abc import Iterator

import pytest

from emopfx import cluster_config, config, config_identity
from emopfx.kubernetes import jobs, lease, names
from emopfx.kubernetes.api import Object
from emopfx.kubernetes.configmap import RunRecord
from emopfx.kubernetes.lease import Lease, Sightings
from emopfx.watch import Watcher, wanted
from tests.emopfx.kubernetes.answers import installed
from tests.emopfx.kubernetes.memory import Memory

ALL = ["deploy", "configure", "generate", "analyze"]
TEXT = "name: nano\nmodel: {name: tiny, dtype: float32}\n"


def record(**states: str) -> RunRecord:
    made = RunRecord("nano", "emopfx", "0123456789", "", "")
    made.stages = {stage: {"state": state} for stage, state in states.items()}
    return made


def digest(text: str) -> str:
    return config_identity.config_hash(cluster_config.identity(cluster_config.read(text, "x.yaml")))


def job(run: str, stage: str, text: str = TEXT) -> str:
    return names.job(run, stage, digest(text))


def stages(cluster: Memory, run: str = "nano") -> dict[str, str]:
    return {stage: entry["state"] for stage, entry in json.loads(cluster.data(f"emopfx-{run}")["stages.json"]).items()}


@pytest.fixture
def cluster() -> Iterator[Memory]:
    with installed(ttlSecondsAfterFinished=60) as cluster:
        yield cluster


@pytest.fixture
def watcher(cluster: Memory) -> Iterator[Watcher]:
    watcher = Watcher(cluster, "emopfx")
    yield watcher
    watcher.close()


def finish(cluster: Memory, watcher: Watcher, run: str = "nano", text: str = TEXT) -> None:
    """Let a run's Jobs end well, one after the other."""
    for stage in jobs.STAGES:
        for _ in range(3):
            watcher.step()
        cluster.end(job(run, stage, text))
    watcher.step()


def test_a_new_config_is_run_but_not_deployed() -> None:
    assert wanted(None, ALL) == ["configure", "generate", "analyze"]
    assert wanted(None, ["analyze"]) == ["analyze"]


@pytest.mark.parametrize(
    ("states", "stages"),
    [
        ({"deploy": "running", "configure": "pending", "generate": "pending"}, ["configure", "generate"]),
        ({"configure": "succeeded", "generate": "running", "analyze": "pending"}, ["generate", "analyze"]),
        ({"configure": "succeeded", "generate": "succeeded"}, []),
        ({"configure": "succeeded", "generate": "failed", "analyze": "pending"}, []),
    ],
)
def test_a_run_is_brought_to_the_end_that_was_asked_for(states: dict[str, str], stages: list[str]) -> None:
    assert wanted(record(**states), ALL) == stages


def test_a_run_under_another_config_map_s_name_is_kept(
    cluster: Memory, watcher: Watcher, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.give("a-request", TEXT, "nano")
    watcher.step()
    assert watcher.busy
    finish(cluster, watcher)
    assert set(stages(cluster).values()) == {"succeeded"}
    assert not watcher.busy
    assert "is gone" not in capsys.readouterr().err


def test_a_run_whose_config_map_is_gone_is_let_go(
    cluster: Memory, watcher: Watcher, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.give("emopfx-nano", TEXT, "nano")
    watcher.step()
    cluster.delete("ConfigMap", "emopfx-nano")
    watcher.step()
    assert not watcher.busy
    assert "nano: its ConfigMap is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{TEXT}stages: [deploy]\n", "the operator leaves deploy to emopfx run"),
        ("name: other\n", "the label emopfx.dev/experiment is nano, and the config's name is other; they must be the"),
        ("[" * 100_000, "nested too deep"),
        ("name: [", "ConfigMap emopfx-nano, line 1: not valid YAML"),
    ],
)
def test_what_can_t_be_run_is_refused_once_and_in_a_sentence(
    cluster: Memory, watcher: Watcher, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    cluster.give("emopfx-nano", text, "nano")
    watcher.step()
    watcher.step()
    assert not watcher.busy
    assert sentence in json.loads(cluster.data("emopfx-nano")["stages.json"])["configure"]["reason"]
    said = capsys.readouterr().err
    assert said.count(sentence) == said.count("ConfigMap emopfx-nano") == 1


@pytest.mark.parametrize(("key", "text"), [("stages.json", "[1]"), ("stages.json", '{"generate": "x"}'), ("hash", "")])
def test_a_broken_record_stops_nobody_else(cluster: Memory, watcher: Watcher, key: str, text: str) -> None:
    cluster.give("emopfx-bad", TEXT.replace("nano", "bad"), "bad")
    watcher.step()
    watcher.close()
    cluster.patch("ConfigMap", "emopfx-bad", {"data": {key: text}})
    cluster.give("emopfx-nano", TEXT, "nano")
    finish(cluster, watcher)
    assert set(stages(cluster).values()) == {"succeeded"}
    assert "somebody has changed it" in cluster.data("emopfx-bad")["refused"]


def test_what_nobody_foresaw_stops_nobody_else(
    cluster: Memory, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = cluster_config.read

    def odd(text: str, source: str) -> config.Experiment:
        if "odd" in text:
            raise ZeroDivisionError("odd")
        return read(text, source)

    monkeypatch.setattr(cluster_config, "read", odd)
    cluster.give("emopfx-odd", "name: odd", "odd")
    cluster.give("emopfx-nano", TEXT, "nano")
    finish(cluster, watcher)
    assert set(stages(cluster).values()) == {"succeeded"}
    assert "an error in emopfx itself" in cluster.data("emopfx-odd")["stages.json"]


def ttl(cluster: Memory, stage: str) -> int | None:
    spec: Object = cluster.objects["Job", job("nano", stage)]["spec"]
    return spec.get("ttlSecondsAfterFinished")


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_the_time_to_live_begins_when_the_outcome_is_recorded(cluster: Memory, watcher: Watcher, end: str) -> None:
    cluster.give("emopfx-nano", TEXT, "nano")
    for _ in range(3):
        watcher.step()
    assert ttl(cluster, "generate") is None
    cluster.end(job("nano", "generate"), end)
    watcher.step()
    assert ttl(cluster, "generate") == 60
    # As it is where the operator was killed in between.
    cluster.patch("Job", job("nano", "generate"), {"spec": {"ttlSecondsAfterFinished": None}})
    watcher.close()
    Watcher(cluster, "emopfx").step()
    assert ttl(cluster, "generate") == 60


def test_a_run_that_a_command_holds_is_left_to_it(cluster: Memory, watcher: Watcher) -> None:
    cluster.give("emopfx-nano", TEXT, "nano")
    with Lease(cluster, "nano", "run", Sightings()):
        watcher.step()
        assert not watcher.busy
    watcher.step()
    assert lease.holder(cluster, "nano", Sightings()).startswith("operator_")
