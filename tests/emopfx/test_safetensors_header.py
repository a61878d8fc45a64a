import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emopfx import safetensors_header
from emopfx.safetensors_header import BrokenError, Read


def reading(path: Path) -> Read:
    return lambda start, length: path.read_bytes()[start : start + length]


@pytest.mark.parametrize("count", [0, 1, 3, 300])
def test_what_the_library_writes_is_read_and_the_other_way_round(tmp_path: Path, count: int) -> None:
    numbers = np.random.default_rng(0)
    tensors = {f"layers.{n}.x": numbers.random((n % 5, 3), np.float32) for n in range(count)}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"of": "all"} if count else None)
    header = safetensors_header.read(reading(path), "a")
    content = path.read_bytes()
    assert (header.size, header.metadata) == (len(content), {"of": "all"} if count else {})
    found = {tensor.name: content[tensor.begin : tensor.end] for tensor in header.tensors}
    assert found == {name: tensor.tobytes() for name, tensor in tensors.items()}
    some = header.tensors[::2]
    written = safetensors_header.write(some, {"of": "some"}) + b"".join(found[tensor.name] for tensor in some)
    path.write_bytes(written)
    assert {name: tensor.tobytes() for name, tensor in load_file(path).items()} == {
        tensor.name: found[tensor.name] for tensor in some
    }


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{}}", "a has a broken header"),
        ("[]", "a has a broken header"),
        ({"x": {}}, "a has a broken header"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, "a has a broken header"),
        ({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "a has a broken header"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "a has a broken header"),
        ({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, -1]}}, "a has a broken header"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "a has 4 bytes of x, which its shape doesn't"),
        ({"__metadata__": {"a": 1}}, "a has a broken header"),
        ("[" * 100_000, "a has a broken header"),
    ],
)
def test_nothing_is_believed_that_is_not_so(header: object, said: str) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(8)
    with pytest.raises(BrokenError, match=said):
        safetensors_header.read(lambda start, length: content[start : start + length], "a")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a is no safetensors file"),
        (b"\xff" * 20, "a is no safetensors file"),
        ((50_000).to_bytes(8, "little") + bytes(20_000), "a ends too early"),
    ],
)
def test_a_file_that_is_none_is_said_to_be_none(content: bytes, said: str) -> None:
    with pytest.raises(BrokenError, match=said):
        safetensors_header.read(lambda start, length: content[start : start + length], "a")
