from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from emopfx.config import Intervention
from emopfx.config_file import parse
from emopfx.errors import InputError
from emopfx.hashing import file_sha256
from emopfx.steering import checksums, locate, request


def test_a_vector_is_looked_for_in_the_own_folder_then_among_all_results(tmp_path: Path) -> None:
    other = tmp_path / "other" / "artifacts"
    other.mkdir(parents=True)
    (other / "v.safetensors").touch()
    assert locate("other/artifacts/v.safetensors", "nano", tmp_path) == "other/artifacts/v.safetensors"
    own = tmp_path / "nano" / "other" / "artifacts"
    own.mkdir(parents=True)
    (own / "v.safetensors").touch()
    assert locate("other/artifacts/v.safetensors", "nano", tmp_path) == "nano/other/artifacts/v.safetensors"


@pytest.mark.parametrize("file", ["none.safetensors", "../outside.safetensors", "/etc/hostname", "."])
def test_a_vector_that_is_not_there_or_outside_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "outside.safetensors").touch()
    root = tmp_path / "results"
    root.mkdir()
    with pytest.raises(InputError, match=r"variants: there is no vector file .* nor "):
        locate(file, "nano", root)


def test_checksums_are_those_of_the_files_named(tmp_path: Path) -> None:
    (tmp_path / "v.safetensors").write_text("numbers")
    steer = [{"kind": "add", "layer": 0, "vector": f"v.safetensors#{name}"} for name in ("a", "b")]
    cut = [{"kind": "zero", "layer": 0}]
    variants = ["control", {"name": "steer", "interventions": steer}, {"name": "cut", "interventions": cut}]
    experiment = parse({"name": "nano", "variants": variants}, "test")
    assert checksums(experiment, tmp_path) == {"v.safetensors": file_sha256(tmp_path / "v.safetensors")}


def vectors(root: Path, *names: str) -> str:
    folder = root / "nano" / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(4, np.float32) for name in names}, folder / "v.safetensors", {"what": "directions"})
    return "artifacts/v.safetensors"


def asked(root: Path, vector: str, layer: int, num_layers: int | None = 16) -> object:
    one = Intervention(kind="add", layer=layer, vector=vector, scale=4.0)
    return request(one, "nano", root, num_layers)["vector"]


def test_without_a_name_the_vector_is_that_of_the_place_itself(tmp_path: Path) -> None:
    file = vectors(tmp_path, "layers.3.output", "layers.12.output")
    assert asked(tmp_path, file, 12) == "nano/artifacts/v.safetensors#layers.12.output"
    assert asked(tmp_path, file, -4) == "nano/artifacts/v.safetensors#layers.12.output"
    assert asked(tmp_path, f"{file}#layers.3.output", 12) == "nano/artifacts/v.safetensors#layers.3.output"


def test_without_a_name_the_only_vector_is_meant(tmp_path: Path) -> None:
    assert asked(tmp_path, vectors(tmp_path, "calm"), 12) == "nano/artifacts/v.safetensors#calm"


def test_which_of_several_vectors_is_meant_must_be_clear(tmp_path: Path) -> None:
    file = vectors(tmp_path, "layers.3.output", "layers.12.mlp.output")
    with pytest.raises(InputError, match=r"has no layers\.12\.output; name one .*: layers\.12\.mlp\.output, layers\.3"):
        asked(tmp_path, file, 12)
    # Counted from the end of a model whose size isn't known.
    with pytest.raises(InputError, match=r"has no layers\.-4\.output"):
        asked(tmp_path, file, -4, None)


@pytest.mark.parametrize("content", [b"", b"numbers", b"\xff" * 90, b"\x02" + bytes(7) + b"[]"])
def test_a_vector_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    file = vectors(tmp_path, "calm")
    (tmp_path / "nano" / file).write_bytes(content)
    with pytest.raises(InputError, match=r"v\.safetensors (is no safetensors file|has no layers)"):
        asked(tmp_path, file, 12)
