"""The lock files of the images hold what pyproject.toml asks for."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("image", "project"), [("jobs", "pyproject.toml"), ("server", "server/pyproject.toml")])
def test_lock_fits_the_project(image: str, project: str) -> None:
    lines = (ROOT / "images" / image / "requirements.lock").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.lstrip().startswith("#"))
    asked = tomllib.loads((ROOT / project).read_text())["project"]["dependencies"]
    for requirement in map(Requirement, asked):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not in the lock; make locks"
        assert requirement.specifier.contains(pin), f"{requirement} is not what the lock has ({pin}); make locks"
