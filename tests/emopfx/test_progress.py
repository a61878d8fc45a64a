import io

import pytest
from rich.console import Console
from rich.table import Table

from emopfx import progress
from emopfx.kubernetes import logs
from emopfx.progress import Progress, show_table


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("emopfx.progress.time.monotonic", lambda: now[0])
    return now


def test_a_line_says_share_rate_failures_and_time_left() -> None:
    counter = Progress("generate", 9233, 0)
    counter.done, counter.failed = 412, 0
    assert counter.line(412 / 31.2 * 60) == "generate 412/9233 4.5% 31.2/min failed=0 eta=4h42m"
    counter.done, counter.failed = 9000, 33
    assert counter.line(60) == "generate 9000/9233 97.5% 9000.0/min failed=33 eta=1s"


def test_the_rate_leaves_out_what_was_there_before() -> None:
    counter = Progress("generate", 100, 50)
    assert counter.line(60) == "generate 50/100 50.0% 0.0/min failed=0 eta=?"
    counter.done = 60
    assert counter.line(60) == "generate 60/100 60.0% 10.0/min failed=0 eta=4m00s"


def test_a_log_gets_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("generate", 10_000) as counter:
        for second in range(1, 61):
            clock[0] = float(second)
            counter.advance()
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_a_log_gets_a_line_every_five_percent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("generate", 200) as counter:
        for item in range(1, 201):
            clock[0] = item * 0.15
            counter.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[-1].startswith("generate 200/200 100.0%")


def test_a_fast_run_is_silent_until_its_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("generate", 50) as counter:
        for _ in range(50):
            counter.advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress.console, "_force_terminal", True)
    with Progress("generate", 3) as counter:
        counter.advance()
        counter.advance(failed=True)
    shown = capsys.readouterr().err
    assert "1/3" in shown
    assert "failed=1" in shown


def test_a_table_is_never_cut_on_a_narrow_console() -> None:
    console = Console(width=20, file=io.StringIO())
    table = Table("experiment", "samples", "state")
    table.add_row("a-name-that-is-long", "192/192", "succeeded")
    show_table(console, table)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert all(word in printed for word in ("a-name-that-is-long", "192/192", "succeeded"))
    assert len({len(line) for line in printed.splitlines() if line}) == 1


def test_a_line_says_how_many_bytes_are_moved_in_a_second() -> None:
    counter = Progress("push-activations", 100, moved=lambda: 90_000_000)
    counter.done = 50
    assert counter.line(60) == "push-activations 50/100 50.0% 50.0/min 1.5MB/s failed=0 eta=1m00s"
    # In a Job's log, it is no progress of the stage.
    assert logs.progress(counter.line(60)) is None
