import multiprocessing
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from emopfx.config import Experiment
from emopfx.config_file import parse
from emopfx.config_identity import identity
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, write_json
from emopfx.record import Record, choose_folder, hold, lock, running

DATASET = {"name": "gsm8k", "sample_ids": ["gsm8k_0001", "gsm8k_0007"]}


def experiment(**changes: object) -> Experiment:
    return parse({"name": "nano", "variants": ["control", "calm"], **changes}, "test")


def finish_one(record: Record) -> None:
    sample: dict[str, Any] = {"config_hash": record.hash, "metrics": {}, "breadcrumb": None}
    write_json(record.layout.sample(record.sample_keys()[0]) / "sample.json", sample)


def start(root: Path, stages: list[str], name: str = "nano", **changes: object) -> Record:
    config = experiment(**changes)
    return Record.start(Layout(root, name), config, identity(config, {}), DATASET, stages)


def states(record: Record) -> dict[str, str]:
    again = Record.read(record.layout)
    assert again is not None
    return {name: entry["state"] for name, entry in again.content["stages"].items()}


def test_stages_go_from_pending_to_running_to_succeeded(tmp_path: Path) -> None:
    record = start(tmp_path, ["deploy", "generate"])
    assert states(record) == {"deploy": "pending", "generate": "pending"}
    with record.stage("deploy") as entry:
        assert states(record)["deploy"] == "running"
        entry["url"] = "http://x"
    assert states(record) == {"deploy": "succeeded", "generate": "pending"}
    assert record.content["stages"]["deploy"]["url"] == "http://x"


@pytest.mark.parametrize(
    ("problem", "reason"), [(RunError("3 of 8 samples failed"), "3 of 8 samples failed"), (KeyboardInterrupt(), "Key")]
)
def test_a_failed_stage_keeps_its_reason(tmp_path: Path, problem: BaseException, reason: str) -> None:
    record = start(tmp_path, ["generate"])
    with pytest.raises(type(problem)), record.stage("generate"):
        raise problem
    assert states(record) == {"generate": "failed"}
    assert record.content["stages"]["generate"]["reason"].startswith(reason)


def test_a_second_run_keeps_the_first_ones_stages_and_creation(tmp_path: Path) -> None:
    first = start(tmp_path, ["deploy"])
    with first.stage("deploy"):
        pass
    second = start(tmp_path, ["generate"])
    assert states(second) == {"deploy": "succeeded", "generate": "pending"}
    assert second.content["created"] == first.content["created"]


def test_keys_are_all_variants_samples_and_repeats(tmp_path: Path) -> None:
    keys = start(tmp_path, []).sample_keys()
    assert keys == ["control/gsm8k_0001", "control/gsm8k_0007", "calm/gsm8k_0001", "calm/gsm8k_0007"]
    keys = start(tmp_path, [], name="other", generation={"repeats": 2}).sample_keys()
    assert keys[:3] == ["control/gsm8k_0001/r1", "control/gsm8k_0001/r2", "control/gsm8k_0007/r1"]


def test_what_the_server_said_is_kept_as_long_as_the_config_stays(tmp_path: Path) -> None:
    first = start(tmp_path, ["configure"])
    first.content |= {"model": {"num_layers": 4}, "server": {"url": "http://x"}}
    first.save()
    again = start(tmp_path, ["generate"], generation={"concurrency": 2}).content
    assert (again["model"], again["server"]) == ({"num_layers": 4}, {"url": "http://x"})
    changed = start(tmp_path, ["generate"], generation={"seed": 2}).content
    assert (changed["model"], changed["server"]) == ({}, {})


def choose(root: Path, *, new_revision: bool = False, **changes: object) -> Layout:
    config = experiment(**changes)
    return choose_folder(root, config, identity(config, {}), new_revision=new_revision)


def test_the_same_config_goes_on_in_its_folder(tmp_path: Path) -> None:
    start(tmp_path, [])
    assert choose(tmp_path).name == "nano"
    assert choose(tmp_path, generation={"concurrency": 3}).name == "nano"
    assert choose(tmp_path, new_revision=True).name == "nano"


def test_a_config_without_a_sample_yet_may_be_corrected(tmp_path: Path) -> None:
    start(tmp_path, [])
    assert choose(tmp_path, generation={"temperature": 0.2}).name == "nano"


def test_another_config_is_refused_with_what_differs(tmp_path: Path) -> None:
    finish_one(start(tmp_path, []))
    with pytest.raises(InputError, match=r"generation.temperature: 0.7 → 0.2\); choose .* --new-revision"):
        choose(tmp_path, generation={"temperature": 0.2})


def test_a_new_revision_gets_a_folder_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    finish_one(start(tmp_path, []))
    changes: dict[str, Any] = {"generation": {"temperature": 0.2}}
    layout = choose(tmp_path, new_revision=True, **changes)
    assert layout.name.startswith("nano-")
    record = start(tmp_path, [], name=layout.name, **changes)
    assert record.content["config"]["name"] == layout.name
    assert choose(tmp_path, new_revision=True, **changes) == layout
    assert parse(record.content["config"], "record").name == layout.name


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "nano").touch()
    for root in (tmp_path, tmp_path / "nano"):
        with (
            pytest.raises(InputError, match="nano can't be a folder: there is a file in the way"),
            lock(Layout(root, "nano")),
        ):
            pass
        assert not running(Layout(root, "nano"))


def test_a_run_that_ended_before_the_lock_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = experiment(generation={"seed": 2})
    taken = lock

    @contextmanager
    def late(layout: Layout) -> Iterator[None]:
        if layout.name == "nano":
            finish_one(start(tmp_path, []))
        with taken(layout):
            yield

    monkeypatch.setattr("emopfx.record.lock", late)
    with pytest.raises(InputError, match="holds results of another config"), held(tmp_path, config):
        pass
    shutil.rmtree(tmp_path / "nano")
    with held(tmp_path, config, new_revision=True) as layout:
        assert layout.name.startswith("nano-")


def held(root: Path, config: Experiment, *, new_revision: bool = False) -> AbstractContextManager[Layout]:
    return hold(root, config, identity(config, {}), new_revision=new_revision)


def _hold(layout: Layout, held: Event, done: Event) -> None:
    with lock(layout):
        held.set()
        done.wait()


def test_a_second_run_at_once_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "nano")
    assert not running(layout)
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(layout, held, done))
    process.start()
    assert held.wait(30)
    assert running(layout)
    with pytest.raises(RunError, match="another run of nano is at work"), lock(layout):
        pass
    process.kill()
    process.join()
    assert not running(layout)
    with lock(layout):
        assert running(layout)
    assert not running(layout)
