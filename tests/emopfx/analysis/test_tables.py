import re

import pytest
from rich.console import Console

from emopfx.analysis.schema import Report
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
    found = answers(grid, truncated=("collaborative/q1",))
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
        probes=None,
        sae=None,
    )


def test_the_terminal_and_markdown_show_the_same_figures(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show(report, Console(width=80))
    shown, text = capsys.readouterr().out, markdown(report)
    assert report.statistics
    effect = report.statistics.comparisons[0].accuracy
    assert effect.low is not None
    assert effect.high is not None
    difference = f"-12.5 [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
    for figure in ("87.5% [69, 96]", difference, "0.500", "+5.0"):
        assert figure in shown
        assert figure in text
    assert f"| collaborative | 24 | {difference} | 0.250 | 0.500 |" in text
    assert "- collaborative, right→wrong: q0, q1, q2" in text


def test_the_terminal_needs_80_columns(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show(report, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    assert max(len(line) for line in lines if "missing" not in line and "cut at" not in line) <= 80


def test_truncated_and_missing_answers_are_said(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    show(report, Console(width=200))
    shown, text = capsys.readouterr().out, markdown(report)
    for place in (shown, text):
        assert "1 of 73 samples are missing: neutral/q24" in place
        assert "answers cut at max_tokens: 1" in place
    assert re.search(r"without truncated pairs\n\n.*\n.*\n\| collaborative \| 23 ", text)
