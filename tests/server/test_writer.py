import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emopfx_server.engine import writer
from emopfx_server.engine.capture import Capture, CaptureSpec, layout_of
from emopfx_server.engine.model import Site
from emopfx_server.engine.writer import commit, describe, read_record


@pytest.fixture
def capture() -> Capture:
    layout = layout_of(frozenset({Site(0, "output", 4, 0)}))
    capture = Capture(CaptureSpec(layout, torch.float32, "all"), 2, 1)
    slab = layout.allocate(2, torch.float32, "cpu")
    slab[4].fill_(1.5)
    capture.take(slab, layout, 0, 0, [7, 8])
    return capture


def test_commit_leaves_the_folder_and_nothing_else(tmp_path: Path, capture: Capture) -> None:
    folder = tmp_path / "a" / "b" / "r1"
    commit(folder, "r1", capture, {"model": "m"}, {"format": 1})
    assert [path.name for path in folder.parent.iterdir()] == ["r1"]
    record = read_record(folder)
    assert record is not None
    assert record["tokens"] == 2
    assert record["files"] == [describe(folder / "activations.safetensors")]
    assert load_file(folder / "activations.safetensors")["layers.0.output"].tolist() == [[1.5] * 4] * 2
    assert (folder / "activations.safetensors").stat().st_mode & 0o044 == 0o044


def test_what_a_killed_server_left_is_replaced(tmp_path: Path, capture: Capture) -> None:
    partial = tmp_path / ".r1.partial"
    partial.mkdir()
    (partial / "activations.safetensors").write_text("half")
    assert read_record(tmp_path / "r1") is None
    commit(tmp_path / "r1", "r1", capture, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["r1"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_sync", no_room)
    with pytest.raises(OSError, match="No space"):
        commit(tmp_path / "r1", "r1", capture, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_captured_no_rows_can_be_written(tmp_path: Path) -> None:
    layout = layout_of(frozenset({Site(0, "output", 4, 0)}))
    empty = Capture(CaptureSpec(layout, torch.bfloat16, "generated"), 2, 1)
    commit(tmp_path / "r1", "r1", empty, {}, {})
    assert load_file(tmp_path / "r1" / "activations.safetensors")["layers.0.output"].shape == (0, 4)
    assert json.loads((tmp_path / "r1" / "metadata.json").read_text())["shapes"] == {"layers.0.output": [0, 4]}
    shutil.rmtree(tmp_path / "r1")
