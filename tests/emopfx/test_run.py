import os
from pathlib import Path

import pytest

from emopfx import run
from emopfx.config_file import parse
from emopfx.config_identity import identity


def model_files(folder: Path) -> object:
    return run._model_files(str(folder))


def test_a_model_in_a_folder_counts_by_its_files(tmp_path: Path) -> None:
    assert run._model_files("Qwen/Qwen3-0.6B") == {}
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(run.PARTS * run.PART_BYTES * 3))
    before = model_files(tmp_path)
    assert model_files(tmp_path) == before
    for place in (0, -1):
        with weights.open("r+b") as file:
            file.seek(place, os.SEEK_SET if place == 0 else os.SEEK_END)
            file.write(b"x")
        assert model_files(tmp_path) != before
        before = model_files(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    assert model_files(tmp_path) != before


def test_the_files_of_a_model_are_part_of_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = parse({"name": "a", "model": {"name": "mine"}, "dataset": {"path": "x/y"}}, "test")
    without = run._identity(experiment, tmp_path)
    assert without == identity(experiment, without["dataset"], {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert run._identity(experiment, tmp_path) != without
