from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from rich.console import Console

from emopfx import status
from emopfx.config_file import parse
from emopfx.config_identity import identity
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout, write_json
from emopfx.record import Record, lock


@pytest.fixture
def record(tmp_path: Path) -> Record:
    config = parse({"name": "nano", "variants": ["control", "calm"]}, "test")
    dataset = {"path": "x.jsonl", "sample_ids": ["x_0001", "x_0002"]}
    return Record.start(Layout(tmp_path, "nano"), config, identity(config, {}), dataset, ["generate", "analyze"])


def finish(record: Record, count: int) -> None:
    for key in record.sample_keys()[:count]:
        write_json(
            record.layout.sample(key) / "sample.json", {"config_hash": record.hash, "metrics": {}, "breadcrumb": None}
        )


def test_all_experiments_are_listed(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").touch()
    finish(record, 3)
    status.show_all(tmp_path, Console(width=120))
    row = next(line for line in capsys.readouterr().out.splitlines() if "nano" in line)
    assert record.hash[:8] in row
    assert "3/4" in row
    assert row.count("pending") == 2


def test_no_experiments_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status.show_all(tmp_path / "none", Console())
    assert "there are no experiments" in capsys.readouterr().out


def test_one_experiments_stages_are_shown(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError), record.stage("generate"):
        raise RunError("2 of 4 samples failed")
    with lock(record.layout):
        status.show(record, Console(width=120))
    shown = capsys.readouterr().out
    assert "0 of 4 samples (a run is at work)" in shown
    assert "2 of 4 samples failed" in shown


def test_an_unknown_experiment_is_refused_with_those_that_there_are(record: Record, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no experiment nona in .*; there are: nano"):
        status.read(tmp_path, "nona")


def test_only_samples_of_this_config_are_counted(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    finish(record, 2)
    for key, content in zip(record.sample_keys()[2:], ({}, {"config_hash": "other"}), strict=True):
        write_json(record.layout.sample(key) / "sample.json", content)
    status.show(record, Console(width=120))
    assert "2 of 4 samples" in capsys.readouterr().out


def test_a_stage_whose_run_was_killed_is_stopped(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record.content["stages"]["generate"] = {"state": "running", "started": "2026-01-01T00:00:00"}
    record.save()
    with lock(record.layout):
        status.show(record, Console(width=120))
        assert "running" in capsys.readouterr().out
    status.show(record, Console(width=120))
    status.show_all(tmp_path, Console(width=120))
    shown = capsys.readouterr().out
    assert "running" not in shown
    assert shown.count("stopped") == 2


def test_a_reason_is_shown_as_it_is(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "capture.layers: [bold]9[/bold] [0, 1] [/x]"
    with pytest.raises(RunError), record.stage("generate"):
        raise RunError(reason)
    status.show(record, Console(width=160))
    assert reason in capsys.readouterr().out


def test_monitor_follows_a_run_until_it_has_ended(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(record, 3)
    with ThreadPoolExecutor() as pool:
        with lock(record.layout):
            following = pool.submit(status.monitor, tmp_path, "nano")
            finish(record, 4)
            # All samples are there, but the run has not ended yet.
            assert not wait([following], timeout=0.5).done
        following.result(timeout=10)
    assert "nano: all 4 samples are there" in capsys.readouterr().err


def test_monitor_waits_for_the_record_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "new")
    with ThreadPoolExecutor() as pool:
        with lock(layout):
            following = pool.submit(status.monitor, tmp_path, "new")
            assert not wait([following], timeout=0.5).done
        with pytest.raises(InputError, match="there is no experiment new"):
            following.result(timeout=10)


def test_monitor_ends_when_all_is_there(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(record, 4)
    status.monitor(tmp_path, "nano")
    assert "nano: all 4 samples are there" in capsys.readouterr().err


def test_monitor_ends_when_nobody_works_any_more(record: Record, tmp_path: Path) -> None:
    finish(record, 3)
    with pytest.raises(RunError, match=r"nano: no run is at work, 3 of 4 samples are there$"):
        status.monitor(tmp_path, "nano")
    with pytest.raises(RunError), record.stage("generate"):
        raise RunError("disk full")
    with pytest.raises(RunError, match="3 of 4 samples are there: disk full"):
        status.monitor(tmp_path, "nano")
