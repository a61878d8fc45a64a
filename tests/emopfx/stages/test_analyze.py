import json
from pathlib import Path

import pytest
from rich.console import Console

from emopfx.analysis.schema import Report
from emopfx.analysis.tables import show
from emopfx.config import identity
from emopfx.config_file import parse
from emopfx.errors import RunError
from emopfx.layout import Layout, write_json, write_text
from emopfx.record import Record
from emopfx.stages.analyze import analyze


@pytest.fixture
def record(tmp_path: Path) -> Record:
    config = parse({"name": "nano", "variants": ["control", "calm"]}, "test")
    dataset = {"path": "x.jsonl", "sample_ids": [f"x_{i:04d}" for i in range(1, 13)]}
    return Record.start(Layout(tmp_path, "nano"), config, identity(config, {}), dataset, [])


def add(record: Record, variant: str, number: int, *, correct: bool, tokens: int, reason: str = "stop") -> None:
    metrics = {
        "correct": correct,
        "format": True,
        "prompt_tokens": 5,
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
        "breadcrumb": None,
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
    assert json.loads(kept.read_text())["section"]["variants"][0]["n"] == 1
