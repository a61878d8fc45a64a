from pathlib import Path

import pytest

from emopfx.config_file import parse
from emopfx.errors import InputError
from emopfx.hashing import file_sha256
from emopfx.steering import checksums, locate


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
