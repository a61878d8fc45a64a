import os
import sys
from pathlib import Path
from typing import Any

import pytest

from emopfx.errors import InputError, RunError
from emopfx.kubernetes import helm
from emopfx.kubernetes.helm import Release


class Remembered:
    """A Helm that only remembers; the real ones are tried on a cluster."""

    def __init__(self, release: Release | None) -> None:
        self.release = release
        self.upgrades: list[dict[str, Any]] = []

    def read(self, release: str) -> Release | None:
        return self.release

    def upgrade(self, release: str, chart: str, values: dict[str, Any]) -> None:
        self.upgrades.append(values)


CHART = Path(__file__).parents[3] / "charts" / "emopfx"
TINY: dict[str, Any] = {"model": {"name": "tiny", "revision": ""}}


@pytest.mark.parametrize(
    ("before", "values"),
    [
        (None, TINY),
        (Release("deployed", {"model": {"name": "tiny"}, "gpu": {"enabled": False}}), None),
        (Release("failed", TINY), TINY),
        (
            Release("deployed", {"model": {"name": "big", "dtype": "auto"}, "gpu": {"enabled": False}}),
            {"model": {"name": "tiny", "revision": "", "dtype": "auto"}, "gpu": {"enabled": False}},
        ),
        (Release("deployed", {"model": {"name": "tiny", "revision": "main"}}), TINY),
    ],
)
def test_values_that_were_given_stay(tmp_path: Path, before: Release | None, values: dict[str, Any] | None) -> None:
    remembered = Remembered(before)
    change = helm.needed(remembered, "emopfx", TINY)
    if change is None:
        assert values is None
    else:
        assert change.before == before
        helm.apply(remembered, "emopfx", str(tmp_path), change)
        assert remembered.upgrades == [values]


def test_the_chart_must_be_there_where_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--chart: there is no chart at"):
        helm.apply(Remembered(None), "emopfx", str(tmp_path / "none"), helm.Change(None, TINY))


def test_merges_as_helm_does() -> None:
    assert helm.merged({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"c": [2]}, "e": 3}) == {
        "a": {"b": 1, "c": [2]},
        "d": 2,
        "e": 3,
    }


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> helm.Helm:
    """The helm command that is found on the PATH, where one stands in for it."""
    command = tmp_path / "helm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("helm_command.py")} "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RELEASES", str(tmp_path / "releases.json"))
    found = helm.find("research")
    assert isinstance(found, helm.HelmBinary)
    return found


def test_the_command_installs_and_upgrades(binary: helm.Helm) -> None:
    assert binary.read("emopfx") is None
    for values in ({}, {**TINY, "gpu": {"enabled": False}}, TINY):
        binary.upgrade("emopfx", str(CHART), values)
        assert binary.read("emopfx") == Release("deployed", values)
    assert binary.read("other") is None


def test_what_the_command_says_is_passed_on(binary: helm.Helm, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f'^helm: path "{tmp_path}/none" not found$'):
        binary.upgrade("emopfx", f"{tmp_path}/none", TINY)


SCHEMA = """level=WARN msg="a chart is old"
Error: UPGRADE FAILED: values don't meet the specifications of the schema(s) in the following chart(s):
emopfx:
- at '/gpu': got number, want object
- at '/server': additional properties 'tpyo' not allowed

Use --debug flag to render out invalid YAML
"""
FAILED = "Error: UPGRADE FAILED: execution error at (emopfx/templates/server-deployment.yaml:1:4): server.replicas is 2"


@pytest.mark.parametrize(
    ("printed", "kind", "sentence"),
    [
        (
            SCHEMA,
            InputError,
            "helm: UPGRADE FAILED: values don't meet the specifications of the schema(s) in the following chart(s): "
            "emopfx: - at '/gpu': got number, want object - at '/server': additional properties 'tpyo' not allowed",
        ),
        (FAILED, InputError, f"helm: {FAILED.removeprefix('Error: ')}"),
        ("Error: Kubernetes cluster unreachable: no\n", RunError, "helm: Kubernetes cluster unreachable: no"),
        ("killed\n", RunError, "helm: killed"),
        ("", RunError, "helm: exit code 1"),
    ],
)
def test_what_helm_says_is_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, kind: type[Exception], sentence: str
) -> None:
    (tmp_path / "said").write_text(printed)
    command = tmp_path / "helm"
    command.write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(kind) as refused:
        helm.find("research").upgrade("emopfx", str(CHART), {})
    assert str(refused.value) == sentence
