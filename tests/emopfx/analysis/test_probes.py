import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from emopfx.analysis.activation_file import Site
from emopfx.analysis.activations import Activations, open_answers
from emopfx.analysis.answers import Answer
from emopfx.analysis.probes import probe
from emopfx.analysis.projections import Direction, write_projections
from emopfx.analysis.schema import Probes, ProbeTask
from emopfx.config import Probes as Settings
from tests.emopfx.analysis.planted import HOOK_POINT, TOKENS, Floats, LocalFiles, experiment, write

VARIANTS = ["control", "calm", "anxiety"]
SETTINGS = Settings(c=0.1)
AXIS = list(np.eye(16, dtype=np.float32))
NOTHING = np.zeros(16, np.float32)


def run(root: Path, answers: list[Answer], settings: Settings = SETTINGS) -> Probes:
    return run_opened(open_answers(LocalFiles(root), answers), root, answers, settings)


def run_opened(opened: Activations, root: Path, answers: list[Answer], settings: Settings = SETTINGS) -> Probes:
    folder = root / "nano" / "artifacts" / "probes"
    return probe(opened, answers, "control", settings, folder, {"experiment": "nano"})


def task(found: Probes, name: str, feature: str = "last") -> ProbeTask:
    return next(task for task in found.tasks if (task.name, task.feature) == (name, feature))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Probes]:
    """Calm is planted at layer 1 along axis 3, a right answer at layer 2 along axis 5; anxiety nowhere."""

    def plant(layer: int, variant: str, correct: bool) -> Floats:
        if layer == 1:
            return 12 * AXIS[3] if variant == "calm" else NOTHING
        return 2 * AXIS[5] if layer == 2 and correct else NOTHING

    root = tmp_path_factory.mktemp("planted")
    return root, run(root, experiment(root, VARIANTS, 60, plant))


def test_a_planted_direction_is_found_where_it_was_planted_and_nowhere_else(planted: tuple[Path, Probes]) -> None:
    for feature in ("last_prompt", "mean_generated", "last"):
        calm = task(planted[1], "calm vs control", feature)
        assert (calm.samples, calm.questions, calm.classes) == (120, 60, ["control", "calm"])
        elsewhere, here = [calm.probes[0], calm.probes[2]], calm.probes[1]
        assert (here.layer, here.hook_point) == (1, HOOK_POINT)
        assert here.accuracy.value > 0.8
        assert here.selectivity > 0.25
        for other in elsewhere:
            assert other.auc.low is not None
            assert other.auc.high is not None
            assert other.auc.low < 0.5 < other.auc.high
            assert abs(other.selectivity) < 0.2


def test_the_probe_of_what_was_not_planted_is_at_chance_everywhere(planted: tuple[Path, Probes]) -> None:
    anxiety = task(planted[1], "anxiety vs control")
    assert anxiety.majority == 0.5
    assert np.mean([probe.auc.value for probe in anxiety.probes]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([probe.selectivity for probe in anxiety.probes]) == pytest.approx(0, abs=0.1)


def test_right_answers_are_told_from_wrong_ones_to_the_same_question(planted: tuple[Path, Probes]) -> None:
    correct = task(planted[1], "correct")
    assert correct.questions < 60
    assert max(correct.probes, key=lambda probe: probe.auc.value).layer == 2
    # The classes' means are 2 apart in noise of 1, about centres that each question's answers share but for a third.
    assert correct.probes[2].auc.value > 0.75
    assert correct.probes[0].auc.value < 0.65


def test_vectors_are_ready_to_steer_with(planted: tuple[Path, Probes]) -> None:
    folder = planted[0] / "nano" / "artifacts" / "probes" / "vectors" / "last"
    with safe_open(folder / "calm-vs-control-mean.safetensors", "pt") as file:
        assert set(file.keys()) == {f"layers.{layer}.{HOOK_POINT}" for layer in range(3)}
        mean = file.get_tensor(f"layers.1.{HOOK_POINT}")
        assert file.metadata()["experiment"] == "nano"
    assert mean.shape == (16,)
    assert int(mean.abs().argmax()) == 3
    assert float(mean[3]) == pytest.approx(12, abs=0.5)
    with safe_open(folder / "calm-vs-control-probe.safetensors", "pt") as file:
        assert int(file.get_tensor(f"layers.1.{HOOK_POINT}").abs().argmax()) == 3
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}-vs-control-{kind}.safetensors" for name in ("calm", "anxiety") for kind in ("probe", "mean")),
        *(f"variant-{name}-probe.safetensors" for name in VARIANTS),
        *(f"correct-{kind}.safetensors" for kind in ("probe", "mean")),
    }


def test_tokens_are_projected_on_the_best_probes(planted: tuple[Path, Probes]) -> None:
    first, *others = planted[1].projections
    assert first == f"calm vs control at layers.1.{HOOK_POINT}"
    assert {name.split(" at ")[0] for name in others} == {"anxiety vs control", "correct"}
    lines = (planted[0] / "nano" / "artifacts" / "probes" / "projections.jsonl").read_text().splitlines()
    by_key = {entry["key"]: entry for entry in map(json.loads, lines)}
    assert len(by_key) == 180
    name = planted[1].projections[0]
    assert by_key["calm/q_0000"]["tokens"] == [f"t{place} " for place in range(TOKENS)]
    means = {
        variant: np.mean([np.mean(by_key[f"{variant}/q_{i:04d}"]["values"][name]) for i in range(60)])
        for variant in ("calm", "control")
    }
    assert means["calm"] - means["control"] > 1
    every = np.concatenate([entry["values"][name] for entry in by_key.values()])
    assert (np.median(every), 1.4826 * np.median(np.abs(every))) == pytest.approx((0, 1), abs=0.01)


def test_what_is_missing_or_corrupt_is_named_and_the_rest_is_probed(tmp_path: Path) -> None:
    answers = experiment(tmp_path, ["control", "calm"], 8, lambda layer, variant, correct: AXIS[0], layers=1)
    folders = [tmp_path / (answer.breadcrumb or {})["save_dir"] for answer in answers]
    (folders[0] / "activations.safetensors").unlink()
    (folders[1] / "activations.safetensors").write_bytes(b"x" * 100)
    opened = open_answers(LocalFiles(tmp_path), answers)
    found = run_opened(opened, tmp_path, answers)
    assert list(opened.problems) == ["control/q_0000", "control/q_0001"]
    assert "No such file" in opened.problems["control/q_0000"]
    assert "is no safetensors file" in opened.problems["control/q_0001"]
    assert (task(found, "calm vs control").samples, task(found, "calm vs control").questions) == (12, 6)


def test_places_where_no_answer_can_be_read_are_skipped_with_the_reason(tmp_path: Path) -> None:
    def plant(layer: int, variant: str, correct: bool) -> Floats:
        return np.full(16, np.inf, np.float32) if layer == 1 else NOTHING

    found = run(tmp_path, experiment(tmp_path, VARIANTS[:2], 10, plant))
    # A file that is found broken is not read again.
    assert {probe.layer for probe in task(found, "calm vs control").probes} == {0}
    assert ("all", "last", f"no answer can be read at layers.1.{HOOK_POINT}") in {
        (one.name, one.feature, one.reason) for one in found.skipped
    }


def test_tasks_that_the_answers_do_not_allow_are_skipped_with_the_reason(tmp_path: Path) -> None:
    answers = experiment(tmp_path, ["control", "calm"], 4, lambda layer, variant, correct: AXIS[0], layers=1)
    found = run(tmp_path, [answer._replace(correct=True) for answer in answers], Settings(features=["last"]))
    assert [entry.model_dump() for entry in found.skipped] == [
        {"name": "correct", "feature": "last", "reason": "fewer than four questions have answers of wrong and right"}
    ]
    assert [(entry.name, entry.feature) for entry in found.tasks] == [("calm vs control", "last")]


def test_a_massive_first_token_does_not_flatten_the_projections_of_the_rest(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    answers = []
    for number in range(20):
        rows = torch.randn(TOKENS, 4, generator=draw)
        rows[0] += 5000
        answers.append(write(tmp_path, f"calm/q_{number:04d}", {f"layers.0.{HOOK_POINT}": rows}, True))
    opened = open_answers(LocalFiles(tmp_path), answers)
    path = tmp_path / "projections.jsonl"
    assert write_projections(path, opened, {}) == []
    assert not path.exists()
    direction = Direction(Site(0, HOOK_POINT), np.array([1, 0, 0, 0], np.float32))
    assert write_projections(path, opened, {"x": direction}) == ["x"]
    values = np.array([json.loads(line)["values"]["x"] for line in path.read_text().splitlines()])
    assert (values[:, 0] > 100).all()
    assert 0.7 < values[:, 1:].std() < 1.5
