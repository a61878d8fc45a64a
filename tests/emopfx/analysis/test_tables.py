import re

import numpy as np
import pytest
from rich.console import Console

from emopfx.analysis.answers import Answers
from emopfx.analysis.schema import ActivationFiles, Probes, Report, Saes, Skipped
from emopfx.analysis.statistics import statistics
from emopfx.analysis.tables import markdown, show
from tests.emopfx.analysis.test_statistics import answers


@pytest.fixture
def report() -> Report:
    grid: dict[str, list[list[int | None]]] = {
        "control": [[1]] * 24,
        "collaborative": [[int(number > 2)] for number in range(24)],
        "neutral": [[1]] * 24,
    }
    return made_of(answers(grid, truncated=("collaborative/q1",)))


def made_of(found: Answers) -> Report:
    config = {"model": {"name": "tiny", "dtype": "float32"}}
    return Report(
        version=1,
        experiment="nano",
        hash="0123456789ab",
        created="now",
        emopfx="0",
        config=config,
        model={},
        server={},
        run={},
        dataset={"path": "x.jsonl"},
        expected=73,
        found=72,
        missing=["neutral/q24"],
        statistics=statistics(found, 300),
    )


def test_the_terminal_and_markdown_show_the_same_figures(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show(report, Console(width=80))
    shown, text = capsys.readouterr().out, markdown(report)
    assert report.statistics
    effect = report.statistics.comparisons[0].accuracy
    assert effect.low is not None
    assert effect.high is not None
    difference = f"-12.5 [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
    tokens = report.statistics.variants[0].completion_tokens
    assert tokens
    assert tokens.low is not None
    assert tokens.high is not None
    length = f"{tokens.value:.1f} [{tokens.low:.0f}, {tokens.high:.0f}]"
    for figure in ("87.5% [69, 96]", difference, "0.500", "+5.0", length):
        assert figure in shown
        assert figure in text
    assert f"| collaborative | 24 | {difference} | 0.250 | 0.500 |" in text
    assert "| collaborative | right→wrong | 3 | q0, q1, q2 |" in text


def test_the_terminal_needs_80_columns(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show(report, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert max(len(line) for line in lines if "missing" not in line and "cut at" not in line) <= 80


def test_80_columns_hold_a_large_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    names = ("control", "collaborative", "neutral")
    grid: dict[str, list[list[int | None]]] = {
        name: [[int(value)] for value in draw.random(1319) < 0.7] for name in names
    }
    found = answers(grid, truncated=("collaborative/q1",))
    long = [answer._replace(completion_tokens=int(draw.integers(200, 2048))) for answer in found.finished]
    show(made_of(Answers(long, found.expected, found.variants)), Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert sum("without truncated pairs" in line for line in lines) == 2
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_truncated_and_missing_answers_are_said(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show(report, Console(width=200))
    shown, text = capsys.readouterr().out, markdown(report)
    for place in (shown, text):
        assert "1 of 73 samples are missing: neutral/q24" in place
        assert "answers cut at max_tokens: 1" in place
    assert re.search(r"without truncated pairs\n\n.*\n.*\n\| collaborative \| 23 ", text)
    shown_without = shown[shown.index("without truncated pairs") :]
    assert re.search(r"collaborative +-8\.7 \[", shown_without)
    assert "| collaborative | 23 | -8.7 [" in text


def test_every_sample_that_changed_is_named() -> None:
    grid: dict[str, list[list[int | None]]] = {"control": [[1]] * 40, "calm": [[0]] * 40}
    text = markdown(made_of(answers(grid)))
    assert f"| calm | right→wrong | 40 | {', '.join(f'q{number}' for number in range(40))} |" in text


def test_what_could_not_be_read_or_probed_is_said(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = Skipped(name="correct", feature="last", reason="fewer than four questions")
    found = report.model_copy(
        update={
            "activations": ActivationFiles(answers=72, unreadable={"control/q3": "it ends | too early"}),
            "probes": Probes(folds=5, c=0.01, tasks=[], skipped=[skipped], projections=[]),
            "sae": Saes(baseline="control", saes=[], skipped=["layers.1.output: no rows can be read"]),
        }
    )
    show(found, Console(width=200))
    for place in (capsys.readouterr().out, text := markdown(found)):
        assert "the activations of 1 of 72 answers can't be read: control/q3" in place
        assert "not probed: correct (last): fewer than four questions" in place
        assert "no SAE: layers.1.output: no rows can be read" in place
    assert r"| control/q3 | it ends \| too early |" in text
