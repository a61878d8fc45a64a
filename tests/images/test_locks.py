"""The lock files of the images hold what pyproject.toml asks for."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PARTS_OF_CUDA = ("cuda-", "nvidia-", "triton")


def pins(image: str) -> dict[str, str]:
    lines = (ROOT / "images" / image / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.lstrip().startswith("#"))


@pytest.mark.parametrize(
    ("image", "project", "extras"),
    [("jobs", "pyproject.toml", ["analysis"]), ("server", "server/pyproject.toml", [])],
)
def test_lock_fits_the_project(image: str, project: str, extras: list[str]) -> None:
    asked: dict[str, Any] = tomllib.loads((ROOT / project).read_text())["project"]
    optional = [requirement for extra in extras for requirement in asked["optional-dependencies"][extra]]
    for requirement in map(Requirement, asked["dependencies"] + optional):
        pin = pins(image).get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in the lock; make locks"
        assert requirement.specifier.contains(pin), f"{requirement} is not what the lock has ({pin}); make locks"


def test_what_both_images_have_is_of_one_version() -> None:
    jobs, server = pins("jobs"), pins("server")
    assert {name for name in jobs.keys() & server.keys() if jobs[name] != server[name]} == set()


@pytest.mark.parametrize("image", ["jobs", "server"])
def test_the_parts_of_cuda_are_left_to_torch(image: str) -> None:
    assert "torch" in pins(image)
    assert not [name for name in pins(image) if name.startswith(PARTS_OF_CUDA)]
