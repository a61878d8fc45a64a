import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emopfx.config import Experiment
from emopfx.config_file import parse
from emopfx.dataset import Sample
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, read_json, write_json
from emopfx.stages.generate import Outcome, generate, split_finished
from emopfx.units import Unit, plan
from tests.emopfx.scripted_server import Reply, Request, ScriptedServer, completion, error, serve

SAMPLES = [Sample(f"gsm8k_{i:04d}", f"What is {i}?", str(i)) for i in range(1, 5)]


def experiment(**generation: object) -> Experiment:
    variants = ["control", "calm"]
    return parse({"name": "nano", "model": {"name": "tiny"}, "variants": variants, "generation": generation}, "test")


def whole(entry: dict[str, Any] | None) -> None:
    return None


def good(request: Request) -> Reply:
    """Answer as a server that captured three tokens."""
    ndif = request.body["ndif"]
    files = [{"name": "activations.safetensors", "bytes": 9, "sha256": "00"}]
    breadcrumb: dict[str, Any] = {
        "save_dir": f"{ndif['save_dir']}/{ndif['request_id']}",
        "files": files,
        "bytes": 9,
        "tokens": 3,
    }
    return completion(request_id=ndif["request_id"], **breadcrumb)


def failing_on(question: str, reply: Reply) -> Callable[[Request], Reply]:
    return lambda request: reply if question in request.body["messages"][0]["content"] else good(request)


class Run:
    """One experiment in a folder, that can be generated again and again."""

    def __init__(self, root: Path, **generation: object) -> None:
        self.layout = Layout(root, "nano")
        self.experiment = experiment(**generation)
        self.units = plan(self.experiment, SAMPLES, "hash-1")

    def todo(self) -> list[Unit]:
        return split_finished(self.units, self.layout, whole)[0]

    def go(self, answer: Callable[[Request], Reply]) -> tuple[Outcome, ScriptedServer]:
        with serve(answer) as server:
            work = generate(self.experiment, self.units, self.todo(), self.layout, server.url)
            return asyncio.run(work), server


def test_every_unit_is_asked_once_and_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    outcome, server = run.go(good)
    assert (outcome.generated, outcome.kept, outcome.failures) == (8, 0, {})
    assert len({body["ndif"]["request_id"] for body in server.bodies}) == 8
    assert run.todo() == []
    manifest = read_json(run.layout.manifest)
    assert manifest is not None
    assert sorted(manifest) == sorted(unit.key for unit in run.units)
    entry = manifest["calm/gsm8k_0001"]
    assert entry["save_dir"] == f"nano/activations/calm/gsm8k_0001/{entry['request_id']}"
    assert (entry["uri"], entry["tokens"], len(entry["files"])) == (None, 3, 1)


def test_a_second_run_sends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    run.go(good)
    outcome, server = run.go(good)
    assert server.requests == []
    assert (outcome.kept, outcome.generated) == (8, 0)
    assert "generate: 8 of 8 already done, 0 requests sent" in capsys.readouterr().err


def test_a_failed_sample_costs_no_other_and_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, concurrency=2)
    with pytest.raises(RunError, match=r"2 of 8 samples failed, more than .*; the first said: too long"):
        run.go(failing_on("What is 1?", error(400, "too long")))
    assert "calm/gsm8k_0001 failed: too long" in capsys.readouterr().err
    assert sorted(unit.key for unit in run.todo()) == ["calm/gsm8k_0001", "control/gsm8k_0001"]
    outcome, server = run.go(good)
    assert (outcome.kept, outcome.generated, len(server.requests)) == (6, 2, 2)


def test_failures_up_to_the_limit_are_borne(tmp_path: Path) -> None:
    outcome, _ = Run(tmp_path, max_failures=2).go(failing_on("What is 1?", error(400, "too long")))
    assert sorted(outcome.failures) == ["calm/gsm8k_0001", "control/gsm8k_0001"]


def test_what_would_fail_for_all_is_not_tried_for_all(tmp_path: Path) -> None:
    run = Run(tmp_path, concurrency=1)
    with serve(failing_on("What is 2?", error(507, "disk full"))) as server:
        with pytest.raises(RunError, match=r"6 of 8 samples failed \(5 not tried\).*disk full"):
            asyncio.run(generate(run.experiment, run.units, run.todo(), run.layout, server.url))
        assert len(server.requests) == 3
    assert len(run.todo()) == 6


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    run = Run(tmp_path, concurrency=1)
    run.layout.folder.mkdir()
    (run.layout.folder / "control").write_text("a file in the way")
    with pytest.raises(RunError, match=r"samples failed .*Not a directory"):
        run.go(good)


def test_an_answer_without_activations_fails_where_they_are_wanted(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def forgetful(request: Request) -> Reply:
        return completion() if "What is 1?" in request.body["messages"][0]["content"] else good(request)

    with pytest.raises(RunError, match=r"2 of 8 samples failed.*the server captured nothing"):
        run.go(forgetful)
    assert len(run.todo()) == 2
    off = Run(tmp_path / "off")
    off.experiment = parse({**off.experiment.model_dump(), "capture": {"enabled": False}}, "test")
    outcome, _ = off.go(lambda request: completion())
    assert outcome.generated == 8


def test_a_breadcrumb_that_lacks_something_fails_its_sample(tmp_path: Path) -> None:
    reply = completion(save_dir="nano/x")
    with pytest.raises(RunError, match=r"2 of 8 samples failed.*the server's breadcrumb has no bytes, tokens"):
        Run(tmp_path).go(failing_on("What is 1?", reply))


def test_an_intervention_that_cannot_be_made_is_one_sentence_before_any_request(tmp_path: Path) -> None:
    run = Run(tmp_path)
    steer = {"name": "steer", "interventions": [{"kind": "add", "layer": 1, "vector": "gone.safetensors"}]}
    run.experiment = parse({**run.experiment.model_dump(), "variants": [steer]}, "test")
    run.units = plan(run.experiment, SAMPLES, "hash-1")
    with serve(good) as server:
        with pytest.raises(InputError, match=r"there is no vector file .*gone.safetensors"):
            asyncio.run(generate(run.experiment, run.units, run.todo(), run.layout, server.url))
        assert server.requests == []


def test_a_sample_file_that_is_not_whole_is_to_do(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go(good)
    write_json(run.layout.sample("calm/gsm8k_0001") / "sample.json", {})
    assert [unit.key for unit in run.todo()] == ["calm/gsm8k_0001"]
    outcome, _ = run.go(good)
    assert (outcome.kept, outcome.generated) == (7, 1)


def test_stopped_in_the_middle_it_keeps_what_is_finished(tmp_path: Path) -> None:
    run = Run(tmp_path, concurrency=1)

    stop, asked = threading.Event(), iter(range(100))

    def good_three_times(request: Request) -> Reply:
        if next(asked) == 3:
            stop.set()
        return good(request)

    async def work_until_stopped(url: str) -> None:
        work = asyncio.create_task(generate(run.experiment, run.units, run.todo(), run.layout, url))
        await asyncio.to_thread(stop.wait)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    with serve(good_three_times) as server:
        asyncio.run(work_until_stopped(server.url))
    left = len(run.todo())
    assert left in (4, 5)
    manifest = read_json(run.layout.manifest)
    assert manifest is not None
    # The one that was being written when the stage was stopped may be complete by now.
    assert 8 - left - len(manifest) in (0, 1)
    outcome, _ = run.go(good)
    assert outcome.generated == left


def test_another_hash_or_broken_activations_are_generated_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go(good)
    other = plan(run.experiment, SAMPLES, "hash-2")
    assert split_finished(other, run.layout, whole) == (other, {})

    def gone(entry: dict[str, Any] | None) -> str | None:
        return "gone" if entry and "0002" in entry["save_dir"] else None

    todo, broken = split_finished(run.units, run.layout, gone)
    assert {unit.key for unit in todo} == {"control/gsm8k_0002", "calm/gsm8k_0002"}
    assert broken == {"control/gsm8k_0002": "gone", "calm/gsm8k_0002": "gone"}


def test_a_sample_has_its_three_files_with_what_they_promise(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go(good)
    folder = run.layout.sample("calm/gsm8k_0002")
    turns = [json.loads(line) for line in (folder / "trajectory.jsonl").read_text().splitlines()]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    unit = next(unit for unit in run.units if unit.key == "calm/gsm8k_0002")
    assert turns[0]["content"].startswith(f"{unit.prefix}\n\nWhat is 2?")
    state, sample = read_json(folder / "agent_state.json"), read_json(folder / "sample.json")
    assert state is not None
    assert sample is not None
    assert (state["stop_reason"], state["turns"], state["request_id"]) == ("stop", 1, unit.request_id)
    assert (sample["question"], sample["config_hash"]) == ("What is 2?", "hash-1")
    assert (sample["phrasing"], sample["prefix"], sample["seed"]) == (unit.phrasing, unit.prefix, unit.seed)
    assert sample["metrics"]["gold"] == "2"
    assert sample["metrics"]["answer"] == "7"
    assert sample["metrics"]["correct"] is False
    assert sample["metrics"]["completion_tokens"] == 3
    assert sample["breadcrumb"]["request_id"] == unit.request_id


def test_each_answer_is_handed_on_once_it_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    handed: list[str] = []

    def saved(entry: dict[str, Any]) -> None:
        key = entry["save_dir"].removeprefix("nano/activations/").rpartition("/")[0]
        assert (run.layout.sample(key) / "sample.json").exists()
        handed.append(key)

    with serve(good) as server:
        asyncio.run(generate(run.experiment, run.units, run.units, run.layout, server.url, saved))
    assert sorted(handed) == sorted(unit.key for unit in run.units)


def test_what_was_pushed_keeps_its_uri_until_it_is_made_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go(good)
    manifest = read_json(run.layout.manifest) or {}
    entries = {key: {**entry, "uri": f"s3://bucket/{entry['save_dir']}"} for key, entry in manifest.items()}
    entries["calm/gsm8k_0001"]["files"] = []
    write_json(run.layout.manifest, entries)
    run.go(good)
    after = read_json(run.layout.manifest) or {}
    assert after.pop("calm/gsm8k_0001")["uri"] is None
    assert after == {key: entry for key, entry in entries.items() if key in after}
