import json
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emopfx_server.engine import writer
from emopfx_server.engine.capture import Capture, CaptureSpec, layout_of
from emopfx_server.engine.model import Site
from emopfx_server.engine.writer import Committed, commit, describe, give_way, read_committed, sweep

RECORD: dict[str, Any] = {"format": 1, "fingerprint": "f", "answer": {}}


@pytest.fixture
def capture() -> Capture:
    layout = layout_of(frozenset({Site(0, "output", 4, 0)}))
    capture = Capture(CaptureSpec(layout, torch.float32, "all"), 2, 1)
    slab = layout.allocate(2, torch.float32, "cpu")
    slab[4].fill_(1.5)
    capture.take(slab, layout, [0, 1], 0, [7, 8])
    return capture


def test_commit_leaves_the_folder_and_nothing_else(tmp_path: Path, capture: Capture) -> None:
    folder = tmp_path / "a" / "b" / "r1"
    committed = commit(folder, capture, {"model": "m"}, RECORD)
    assert [path.name for path in folder.parent.iterdir()] == ["r1"]
    there = read_committed(folder)
    assert there is not None
    assert (there.record, there.files, there.whole, there.found) == (committed.record, committed.files, True, True)
    assert there.record["tokens"] == 2
    assert there.files == [describe(folder / name) for name in ("activations.safetensors", "metadata.json")]
    assert load_file(folder / "activations.safetensors")["layers.0.output"].tolist() == [[1.5] * 4] * 2
    assert (folder / "activations.safetensors").stat().st_mode & 0o044 == 0o044


def test_an_attempt_leaves_other_attempts_alone(tmp_path: Path, capture: Capture) -> None:
    """Those of another server on the same disk, of a killed one, and of one for another folder."""
    for name in (".r1.partial", ".r1.0123.partial", ".r2.0123.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "activations.safetensors").write_text("half")
    commit(tmp_path / "r1", capture, {}, RECORD)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".r1.0123.partial",
        ".r1.partial",
        ".r2.0123.partial",
        "r1",
    ]


def test_the_same_request_committed_meanwhile_stands(tmp_path: Path, capture: Capture) -> None:
    first = commit(tmp_path / "r1", capture, {}, {**RECORD, "answer": "first"})
    second = commit(tmp_path / "r1", capture, {}, {**RECORD, "answer": "second"})
    assert (second.record, second.files, second.found) == (first.record, first.files, True)
    with pytest.raises(OSError, match="not empty"):
        commit(tmp_path / "r1", capture, {}, {**RECORD, "fingerprint": "other"})
    assert [path.name for path in tmp_path.iterdir()] == ["r1"]
    assert read_committed(tmp_path / "r1") == second


def test_many_at_once_have_one_winner(tmp_path: Path, capture: Capture) -> None:
    """As if by servers that know nothing of each other."""

    def attempt(index: int) -> Committed:
        return commit(tmp_path / "a" / "r1", capture, {}, {**RECORD, "answer": index})

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(24)))
    assert len({committed.record["answer"] for committed in outcomes}) == 1
    assert sum(not committed.found for committed in outcomes) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["r1"]


@pytest.mark.parametrize("damage", [b"", b"x" * 1000, None])
def test_damaged_files_are_replaced(tmp_path: Path, capture: Capture, damage: bytes | None) -> None:
    commit(tmp_path / "r1", capture, {}, RECORD)
    file = tmp_path / "r1" / "activations.safetensors"
    if damage is None:
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.write_bytes(damage)
    there = read_committed(tmp_path / "r1")
    assert there is not None
    assert not there.whole
    assert not commit(tmp_path / "r1", capture, {}, RECORD).found
    there = read_committed(tmp_path / "r1")
    assert there is not None
    assert there.whole
    assert [path.name for path in tmp_path.iterdir()] == ["r1"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", '{"files": []}', '{"fingerprint": 1, "answer": 1, "files": 5}']
)
def test_what_no_commit_has_made_is_something_else(tmp_path: Path, content: str) -> None:
    (tmp_path / "metadata.json").write_text(content)
    assert read_committed(tmp_path) is None
    (tmp_path / "metadata.json").unlink()
    (tmp_path / "metadata.json").mkdir()
    assert read_committed(tmp_path) is None


def test_a_sweep_removes_what_is_old_and_half_written(tmp_path: Path, capture: Capture) -> None:
    commit(tmp_path / "a" / "r1", capture, {}, RECORD)
    for name in ("old", "live", "kept"):
        suffix = "" if name == "kept" else ".partial"
        partial = tmp_path / "a" / f".{name}{suffix}"
        partial.mkdir()
        (partial / "activations.safetensors").write_text("half")
        if name != "live":
            os.utime(partial, (0, 0))
    sweep(tmp_path)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".kept", ".live.partial", "r1"]
    there = read_committed(tmp_path / "a" / "r1")
    assert there is not None
    assert there.whole


def test_new_folders_are_synced_with_their_names(
    tmp_path: Path, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(writer, "_sync", synced.append)
    commit(tmp_path / "a" / "b" / "r1", capture, {}, RECORD)
    assert {tmp_path / "a" / "b", tmp_path / "a", tmp_path} <= set(synced)


def test_a_failed_write_leaves_nothing(tmp_path: Path, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_sync", no_room)
    with pytest.raises(OSError, match="No space"):
        commit(tmp_path / "r1", capture, {}, RECORD)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_captured_no_rows_can_be_written(tmp_path: Path) -> None:
    layout = layout_of(frozenset({Site(0, "output", 4, 0)}))
    empty = Capture(CaptureSpec(layout, torch.bfloat16, "generated"), 2, 1)
    commit(tmp_path / "r1", empty, {}, RECORD)
    assert load_file(tmp_path / "r1" / "activations.safetensors")["layers.0.output"].shape == (0, 4)
    assert json.loads((tmp_path / "r1" / "metadata.json").read_text())["shapes"] == {"layers.0.output": [0, 4]}
    shutil.rmtree(tmp_path / "r1")


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
@pytest.mark.parametrize(("before", "after"), [(0, 10), (15, 15)])
def test_a_writer_gives_way_and_never_takes_more(before: int, after: int) -> None:
    def priority() -> int:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, before)
        give_way()
        return os.getpriority(os.PRIO_PROCESS, thread)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(priority).result() == after
