import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from emopfx.analysis.activation_file import FILE
from emopfx.analysis.answers import Answer
from emopfx.analysis.schema import Report
from emopfx.analysis.tables import show
from emopfx.config import Probes, Sae
from emopfx.config_file import parse
from emopfx.config_identity import identity
from emopfx.errors import RunError
from emopfx.hashing import file_sha256
from emopfx.layout import Layout, write_json, write_text
from emopfx.record import Record
from emopfx.stages.analyze import analyze
from tests.emopfx.analysis import planted


@pytest.fixture
def record(tmp_path: Path) -> Record:
    config = parse({"name": "nano", "variants": ["control", "calm"]}, "test")
    dataset = {"path": "x.jsonl", "sample_ids": [f"x_{i:04d}" for i in range(1, 13)]}
    return Record.start(Layout(tmp_path, "nano"), config, identity(config, {}), dataset, [])


def add(
    record: Record,
    variant: str,
    number: int,
    *,
    correct: bool,
    tokens: int,
    reason: str = "stop",
    answer: Answer | None = None,
) -> None:
    metrics = {
        "correct": correct,
        "format": True,
        "prompt_tokens": planted.PROMPT,
        "completion_tokens": tokens,
        "finish_reason": reason,
        "answer": "7",
        "gold": "7",
    }
    sample = {
        "sample_id": f"x_{number:04d}",
        "question": "What is 3 + 4?",
        "variant": variant,
        "repeat": 1,
        "prefix": None,
        "config_hash": record.hash,
        "metrics": metrics,
        "breadcrumb": answer and answer.breadcrumb,
    }
    folder = record.layout.sample(f"{variant}/x_{number:04d}")
    write_text(folder / "trajectory.jsonl", json.dumps({"role": "assistant", "content": "Answer: 7"}) + "\n")
    write_json(folder / "sample.json", sample)


def test_counts_are_per_variant(record: Record) -> None:
    for number in range(1, 5):
        add(record, "control", number, correct=number > 1, tokens=10 * number)
        add(record, "calm", number, correct=False, tokens=7, reason="length")
    statistics = analyze(record).statistics
    assert statistics
    control, calm = statistics.variants
    assert (control.variant, control.n, control.expected, control.correct) == ("control", 4, 12, 3)
    assert (control.accuracy and control.accuracy.value, control.truncated) == (0.75, 0)
    assert control.completion_tokens
    assert control.completion_tokens.value == 25
    assert (calm.accuracy and calm.accuracy.value, calm.truncated) == (0, 4)


def test_what_is_missing_is_counted_named_and_shown(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    add(record, "control", 1, correct=True, tokens=3)
    report = analyze(record)
    assert (report.expected, report.found, len(report.missing)) == (24, 1, 23)
    assert report.missing[0] == "control/x_0002"
    assert report.statistics
    assert report.statistics.variants[1].accuracy is None
    assert Report.model_validate_json(record.layout.report("json").read_text()) == report
    text = record.layout.report("md").read_text()
    assert "23 of 24 samples are missing: control/x_0002, " in text
    assert "and 13 more" in text
    show(report, Console(width=100))
    assert "23 of 24 samples are missing" in capsys.readouterr().out


def test_samples_of_another_config_do_not_count(record: Record) -> None:
    add(record, "control", 1, correct=True, tokens=3)
    path = record.layout.sample("control/x_0002") / "sample.json"
    write_json(path, {"variant": "control", "config_hash": "other", "metrics": {}})
    assert analyze(record).found == 1


def test_nothing_at_all_is_an_error(record: Record) -> None:
    with pytest.raises(RunError, match=r"there are no finished samples in .*nano; emopfx generate makes them"):
        analyze(record)


def test_a_part_is_done_again_only_when_an_answer_has_changed(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 5):
        add(record, "control", number, correct=True, tokens=3)
        add(record, "calm", number, correct=False, tokens=3)
    first = analyze(record)
    assert "statistics is kept" not in capsys.readouterr().err
    assert analyze(record).statistics == first.statistics
    assert "statistics is kept" in capsys.readouterr().err
    add(record, "calm", 4, correct=True, tokens=3)
    again = analyze(record).statistics
    assert "statistics is kept" not in capsys.readouterr().err
    assert again
    assert again.variants[1].correct == 1


def test_a_part_that_was_stopped_is_done_again(record: Record) -> None:
    add(record, "control", 1, correct=True, tokens=3)
    first = analyze(record)
    kept = record.layout.artifacts / "statistics" / "result.json"
    kept.write_text(kept.read_text()[:50])
    assert analyze(record).statistics == first.statistics
    assert json.loads(kept.read_text())["sections"]["statistics"]["variants"][0]["n"] == 1


@pytest.mark.parametrize("broken", ["[]", "{}", '{"inputs": 3}', '{"inputs": "x", "files": [], "sections": {"no": 1}}'])
def test_a_part_whose_result_is_broken_is_done_again(record: Record, broken: str) -> None:
    add(record, "control", 1, correct=True, tokens=3)
    first = analyze(record)
    kept = record.layout.artifacts / "statistics" / "result.json"
    inputs = json.loads(kept.read_text())["inputs"]
    kept.write_text(broken.replace('"x"', json.dumps(inputs)))
    assert analyze(record).statistics == first.statistics


def captured(record: Record, questions: int, analysis: Mapping[str, object]) -> dict[str, Path]:
    """Add answers with activations, at two layers, and ask for an analysis of these; returns their files."""
    record.content["model"] = {"num_layers": 2}
    record.content["config"]["analysis"] = {"probes": None, "sae": None, **analysis}
    draw, files = torch.Generator().manual_seed(0), {}
    for variant in ("control", "calm"):
        for number in range(1, questions + 1):
            key = f"{variant}/x_{number:04d}"
            tensors = {
                f"layers.{layer}.{planted.HOOK_POINT}": torch.randn(planted.TOKENS, 8, generator=draw)
                for layer in (0, 1)
            }
            answer = planted.write(record.layout.root, key, tensors, number % 2 == 0)
            add(record, variant, number, correct=answer.correct, tokens=planted.COMPLETION, answer=answer)
            files[key] = record.layout.root / (answer.breadcrumb or {})["save_dir"] / FILE
    return files


PROBES = {"probes": Probes(features=["last"], folds=2).model_dump()}
SAE = {"sae": Sae(layers=[0, -1], hook_points=[planted.HOOK_POINT], expansion=2, k=2, tokens=200).model_dump()}


def test_activations_are_probed_and_counted(record: Record) -> None:
    files = captured(record, 6, PROBES | SAE)
    files["control/x_0001"].write_bytes(b"broken")
    add(record, "calm", 6, correct=True, tokens=planted.COMPLETION)
    report = analyze(record)
    assert report.activations
    assert report.activations.answers == 12
    assert report.activations.unreadable.keys() == {"control/x_0001", "calm/x_0006"}
    assert "was answered without a capture" in report.activations.unreadable["calm/x_0006"]
    assert report.probes
    assert (report.probes.tasks[0].name, report.probes.tasks[0].samples) == ("calm vs control", 8)
    assert report.sae
    assert [(sae.layer, sae.hook_point) for sae in report.sae.saes] == [
        (0, planted.HOOK_POINT),
        (1, planted.HOOK_POINT),
    ]
    assert "the activations of 2 of 12 answers can't be read" in record.layout.report("md").read_text()


def test_unreadable_activations_are_counted_when_nothing_can_be_probed(record: Record) -> None:
    for file in captured(record, 2, PROBES).values():
        file.unlink()
    report = analyze(record)
    assert report.activations
    assert len(report.activations.unreadable) == report.activations.answers == 4
    assert report.probes
    assert report.probes.tasks == []
    assert report.probes.skipped
    assert not (record.layout.artifacts / "probes" / "projections.jsonl").exists()


def test_what_was_not_captured_on_purpose_is_not_missing(record: Record) -> None:
    record.content["config"]["capture"]["enabled"] = False
    record.content["config"]["analysis"] = PROBES | {"sae": None}
    add(record, "control", 1, correct=True, tokens=3)
    report = analyze(record)
    assert report.activations
    assert (report.activations.answers, report.activations.unreadable) == (0, {})


def test_a_mended_file_is_noticed(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    files = captured(record, 4, PROBES)
    whole = files["calm/x_0002"].read_bytes()
    files["calm/x_0002"].write_bytes(b"broken" * (len(whole) // 6) + whole[: len(whole) % 6])
    first = analyze(record).activations
    assert first
    assert list(first.unreadable) == ["calm/x_0002"]
    capsys.readouterr()
    analyze(record)
    assert "probes is kept" in capsys.readouterr().err
    files["calm/x_0002"].write_bytes(whole)
    again = analyze(record).activations
    assert again
    assert again.unreadable == {}


def test_a_part_that_lost_a_file_is_done_again_in_an_empty_folder(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    captured(record, 4, PROBES)
    analyze(record)
    folder = record.layout.artifacts / "probes"
    vector = folder / "vectors" / "last" / "calm-vs-control-mean.safetensors"
    content = load_file(vector)
    vector.unlink()
    (folder / "vectors" / "left-over.safetensors").touch()
    analyze(record)
    assert "probes is kept" not in capsys.readouterr().err
    assert load_file(vector).keys() == content.keys()
    assert not (folder / "vectors" / "left-over.safetensors").exists()


def test_an_autoencoder_is_trained_again_only_if_its_own_settings_change(
    record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    captured(record, 4, {"sae": {**SAE["sae"], "layers": [0]}})
    analyze(record)
    capsys.readouterr()
    record.content["config"]["analysis"] |= SAE
    analyze(record)
    said = capsys.readouterr().err
    assert f"sae/layers.0.{planted.HOOK_POINT} is kept" in said
    assert f"sae/layers.1.{planted.HOOK_POINT} …" in said
    record.content["config"]["analysis"] = {"probes": None, "sae": {**SAE["sae"], "k": 3}}
    analyze(record)
    assert "is kept" not in capsys.readouterr().err.replace("statistics is kept", "")


def test_what_is_done_is_on_the_page_even_if_a_later_part_fails(record: Record) -> None:
    captured(record, 4, PROBES)
    # In the place of the folder that the part would empty and fill.
    record.layout.artifacts.mkdir()
    (record.layout.artifacts / "probes").touch()
    with pytest.raises(NotADirectoryError):
        analyze(record)
    assert '"statistics"' in record.layout.report("html").read_text()


def test_files_have_the_sizes_that_the_manifest_says(record: Record) -> None:
    entries = {}
    for key, path in captured(record, 4, PROBES).items():
        save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith("layers.0")}, path)
        described = {"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        save_dir = path.parent.relative_to(record.layout.root).as_posix()
        about = {"request_id": key, "uri": None, "tokens": planted.TOKENS}
        entries[key] = {**about, "save_dir": save_dir, "files": [described]}
    write_json(record.layout.manifest, entries)
    report = analyze(record)
    assert report.activations
    assert report.activations.unreadable == {}
    assert report.probes
    assert {probe.layer for task in report.probes.tasks for probe in task.probes} == {1}
