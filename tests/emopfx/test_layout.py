import os
from pathlib import Path
from typing import Any

import pytest

from emopfx.layout import Layout, read_json, sample_key, write_json, write_text


def test_paths_are_those_of_the_results_page(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "nano")
    assert layout.record == tmp_path / "nano" / "experiment_config.json"
    assert layout.manifest == tmp_path / "nano" / "activations_manifest.json"
    assert layout.sample("calm/gsm8k_0001") == tmp_path / "nano" / "calm" / "gsm8k_0001"
    assert layout.save_dir("calm/gsm8k_0001") == "nano/activations/calm/gsm8k_0001"


def test_repeats_have_folders_of_their_own() -> None:
    assert sample_key("calm", "gsm8k_0001", 1, 1) == "calm/gsm8k_0001"
    assert sample_key("calm", "gsm8k_0001", 2, 3) == "calm/gsm8k_0001/r2"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "file.json"
    write_json(path, {"a": 1})

    def full(descriptor: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="disk full"):
            write_text(path, "new")
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert [item.name for item in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("content", ["", '{"a": ', "[1]", "null"])
def test_what_is_no_json_object_counts_as_absent(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "none.json") is None


def test_only_complete_samples_of_the_config_are_finished(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "nano")
    sample: dict[str, Any] = {"config_hash": "h", "metrics": {}, "breadcrumb": None}
    others: tuple[dict[str, Any], ...] = ({**sample, "config_hash": "i"}, {}, {"config_hash": "h"})
    for name, content in zip("abcd", (sample, *others), strict=True):
        write_json(layout.sample(f"calm/{name}") / "sample.json", content)
    write_text(layout.sample("calm/e") / "trajectory.jsonl", "")
    found = {name: layout.finished(f"calm/{name}", "h") for name in "abcdef"}
    assert found == {"a": sample, **dict.fromkeys("bcdef")}
