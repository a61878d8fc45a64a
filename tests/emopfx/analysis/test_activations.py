import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emopfx.analysis import activations, features
from emopfx.analysis.activation_file import FILE, Positions, Site
from emopfx.analysis.activations import Activations
from emopfx.analysis.answers import Answer
from tests.emopfx.analysis.planted import HOOK_POINT, PROMPT, TOKENS, LocalFiles, write

WIDTH = 8


class Counting:
    """A folder's files, and which ranges of them were read."""

    def __init__(self, root: Path) -> None:
        self.files, self.ranges = LocalFiles(root), list[tuple[str, int, int]]()

    def has(self, name: str, /) -> bool:
        return self.files.has(name)

    def size(self, name: str, /) -> int:
        return self.files.size(name)

    def read(self, name: str, /, start: int, length: int) -> bytes:
        self.ranges.append((name, start, length))
        return self.files.read(name, start, length)


def sample(root: Path, number: int, dtype: torch.dtype, positions: list[int] | None = None) -> Answer:
    rows = TOKENS if positions is None else len(positions)
    tensors = {
        f"layers.{layer}.{HOOK_POINT}": (torch.arange(rows * WIDTH).reshape(rows, WIDTH) / 8 + layer + number).to(dtype)
        for layer in (0, 2, 10)
    }
    return write(root, f"calm/q_{number:04d}", tensors, True, positions)


def opened(source: activations.Source, *answers: Answer) -> Activations:
    return activations.open_answers(source, answers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_those_that_were_written(tmp_path: Path, dtype: torch.dtype) -> None:
    found = opened(LocalFiles(tmp_path), *(sample(tmp_path, number, dtype) for number in range(40)))
    assert found.sites == [Site(layer, HOOK_POINT) for layer in (0, 2, 10)]
    read = dict(found.rows(Site(10, HOOK_POINT), "all"))
    assert list(read) == [f"calm/q_{number:04d}" for number in range(40)]
    for number, rows in enumerate(read.values()):
        expected = (torch.arange(TOKENS * WIDTH).reshape(TOKENS, WIDTH) / 8 + 10 + number).to(dtype).float().numpy()
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, expected)
    assert found.problems == {}


@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        ("all", slice(0, TOKENS)),
        ("prompt", slice(0, PROMPT)),
        ("last_prompt", slice(PROMPT - 1, PROMPT)),
        ("generated", slice(PROMPT, TOKENS)),
        ("last", slice(TOKENS - 1, TOKENS)),
    ],
)
def test_positions_are_one_range_of_bytes_of_one_tensor(tmp_path: Path, positions: Positions, rows: slice) -> None:
    source = Counting(tmp_path)
    found = opened(source, sample(tmp_path, 0, torch.bfloat16))
    every = dict(found.rows(Site(2, HOOK_POINT), "all"))["calm/q_0000"]
    source.ranges.clear()
    ((_, read),) = found.rows(Site(2, HOOK_POINT), positions)
    np.testing.assert_array_equal(read, every[rows])
    ((_, _, length),) = source.ranges
    assert length == (rows.stop - rows.start) * WIDTH * 2


def test_several_positions_are_one_range_too_that_reaches_no_further(tmp_path: Path) -> None:
    source = Counting(tmp_path)
    found = opened(source, sample(tmp_path, 0, torch.bfloat16))
    every = dict(found.rows(Site(2, HOOK_POINT), "all"))["calm/q_0000"]
    source.ranges.clear()
    ((_, read),) = found.rows(Site(2, HOOK_POINT), "last_prompt", "generated")
    np.testing.assert_array_equal(read, every[PROMPT - 1 : TOKENS])
    ((_, _, length),) = source.ranges
    assert length == (TOKENS - PROMPT + 1) * WIDTH * 2


def test_features_are_read_by_the_smallest_range_that_holds_them(tmp_path: Path) -> None:
    source = Counting(tmp_path)
    answer = sample(tmp_path, 0, torch.float32)
    found = opened(source, answer)
    every = dict(found.rows(Site(2, HOOK_POINT), "all"))[answer.key]
    expected = {
        "last_prompt": every[PROMPT - 1],
        "mean_generated": every[PROMPT:].mean(axis=0),
        "last": every[-1],
    }
    wanted: list[tuple[tuple[features.FeatureName, ...], int]] = [
        (("last_prompt",), 1),
        (("last",), 1),
        (("mean_generated", "last"), TOKENS - PROMPT),
        (("last_prompt", "mean_generated", "last"), TOKENS - PROMPT + 1),
    ]
    for names, rows in wanted:
        source.ranges.clear()
        site = Site(2, HOOK_POINT)
        read = features.read(found, [site], {name: [answer.key] for name in names})[site]
        for name in names:
            np.testing.assert_array_equal(read[name][0], expected[name])
        ((_, _, length),) = source.ranges
        assert length == rows * WIDTH * 4


def test_positions_that_were_not_captured_have_no_rows(tmp_path: Path) -> None:
    found = opened(LocalFiles(tmp_path), sample(tmp_path, 0, torch.float32, positions=[0, 1, TOKENS - 2]))
    counts = {name: found.count("calm/q_0000", name) for name in ("all", "prompt", "last_prompt", "generated", "last")}
    assert counts == {"all": 3, "prompt": 2, "last_prompt": 0, "generated": 1, "last": 0}
    ((_, rows),) = found.rows(Site(0, HOOK_POINT), "last")
    assert rows.shape == (0, WIDTH)


def test_only_a_few_samples_are_read_ahead(tmp_path: Path) -> None:
    source = Counting(tmp_path)
    found = opened(source, *(sample(tmp_path, number, torch.float32) for number in range(60)))
    source.ranges.clear()
    rows = found.rows(Site(0, HOOK_POINT), "all")
    next(rows)
    rows.close()  # type: ignore[attr-defined]  # a generator
    assert len(source.ranges) <= 2 * activations.THREADS


def test_missing_and_broken_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    answers = [sample(tmp_path, number, torch.float32) for number in range(9)]
    files = [tmp_path / (answer.breadcrumb or {})["save_dir"] / FILE for answer in answers]
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-40])
    files[2].write_bytes(b"\xff" * 200)
    header = int.from_bytes(files[3].read_bytes()[:8], "little")
    files[3].write_bytes(files[3].read_bytes()[: 8 + header // 2])
    broken = bytearray(files[4].read_bytes())
    broken[8:12] = b"none"
    files[4].write_bytes(broken)
    tensors = {f"layers.0.{HOOK_POINT}": torch.zeros(TOKENS, WIDTH)}
    other = write(tmp_path, "anxiety/q_0000", tensors, True)
    tensors = {f"layers.{layer}.{HOOK_POINT}": torch.full((TOKENS, WIDTH), torch.nan) for layer in (0, 2, 10)}
    endless = write(tmp_path, "anxiety/q_0001", tensors, True)
    found = opened(LocalFiles(tmp_path), *answers, other, endless)
    read = [key for key, _ in found.rows(Site(0, HOOK_POINT), "all")]
    assert read == [f"calm/q_{number:04d}" for number in range(5, 9)]
    reasons = {
        "calm/q_0000": "can't be read: No such file or directory",
        "calm/q_0001": "ends too early",
        "calm/q_0002": "is no safetensors file",
        "calm/q_0003": "ends too early",
        "calm/q_0004": "has a broken header",
        "anxiety/q_0000": "has other tensors than most files",
        "anxiety/q_0001": "holds numbers that are not finite in layers.0",
    }
    assert found.problems.keys() == reasons.keys()
    for key, reason in reasons.items():
        assert reason in found.problems[key], found.problems[key]
        assert FILE in found.problems[key]
    assert found.keys == read


def test_a_file_of_another_size_than_the_manifest_says_is_a_problem(tmp_path: Path) -> None:
    answer = sample(tmp_path, 0, torch.float32)
    entry = answer.breadcrumb or {}
    entry["files"][0]["bytes"] += 8
    found = opened(LocalFiles(tmp_path), answer)
    assert "bytes, but" in found.problems["calm/q_0000"]
    assert found.sites == []


def test_a_breadcrumb_that_names_no_file_is_a_problem_of_one_sample(tmp_path: Path) -> None:
    good, *bad = (sample(tmp_path, number, torch.float32) for number in range(7))
    files = (good.breadcrumb or {})["files"]
    crumbs: list[dict[str, object]] = [
        {},
        {"save_dir": 3, "files": files},
        {"save_dir": "nano"},
        {"save_dir": "nano", "files": [{}]},
        {"save_dir": "nano", "files": [{**files[0], "bytes": "many"}]},
        {"save_dir": "na\0no", "files": files},
    ]
    answers = [answer._replace(breadcrumb=crumb) for answer, crumb in zip(bad, crumbs, strict=True)]
    found = opened(LocalFiles(tmp_path), good, *answers)
    assert found.keys == [good.key]
    assert all("names no activations.safetensors" in problem for problem in found.problems.values())


def test_an_answer_without_a_capture_is_a_problem_too(tmp_path: Path) -> None:
    found = opened(LocalFiles(tmp_path), sample(tmp_path, 0, torch.float32)._replace(breadcrumb=None))
    assert found.problems == {"calm/q_0000": "calm/q_0000 was answered without a capture"}


OFFSETS = "data_offsets"
HEADERS: list[object] = [
    None,
    [],
    "text",
    {},
    {"positions": {"dtype": "I64", "shape": [7], OFFSETS: [0, 55]}},
    {"positions": {"dtype": "F32", "shape": [7], OFFSETS: [0, 28]}},
    {"positions": {"dtype": "I64", "shape": [-7], OFFSETS: [0, 56]}},
    {"positions": {"dtype": "I64", "shape": [7], OFFSETS: [56]}},
    {"positions": {"dtype": "I64", "shape": [7.0], OFFSETS: [0, 56]}},
    {"positions": {"dtype": "I64", "shape": [], OFFSETS: [0, 8]}},
    {"positions": {"dtype": "I64", "shape": [7], OFFSETS: [-56, 0]}},
    {"positions": {"dtype": "I64", "shape": [7], OFFSETS: ["0", "56"]}},
    {"positions": 7},
    {"positions": {"dtype": "I64", "shape": [7], OFFSETS: [0, 56]}, "layers.0.x": {"dtype": "F32", "shape": [7, 2]}},
    {
        "positions": {"dtype": "I64", "shape": [7], OFFSETS: [0, 56]},
        "layers.0.x": {"dtype": "F32", "shape": [7, 2], OFFSETS: [56, 60]},
    },
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_is_not_so_is_a_problem_of_one_file(tmp_path: Path, header: object) -> None:
    good, bad = sample(tmp_path, 0, torch.float32), sample(tmp_path, 1, torch.float32)
    crumb = bad.breadcrumb or {}
    path, text = tmp_path / crumb["save_dir"] / FILE, json.dumps(header).encode()
    rest = np.arange(7).tobytes() + bytes(56)
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    crumb["files"][0]["bytes"] = path.stat().st_size
    found = opened(LocalFiles(tmp_path), good, bad)
    assert found.keys == [good.key]
    assert FILE in found.problems[bad.key]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=12))
def test_no_bytes_of_a_file_end_the_reading_of_others(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    folder = tmp_path / str(uuid.uuid4())
    good, bad = sample(folder, 0, torch.float32), sample(folder, 1, torch.float32)
    path = folder / (bad.breadcrumb or {})["save_dir"] / FILE
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content)
    found = opened(LocalFiles(folder), good, bad)
    for site in found.sites:
        list(found.rows(site, "all"))
    assert good.key in found.problems.keys() | set(found.keys)
