"""What a packaged chart holds, and what it says when it is installed."""

import shlex
import shutil
import tarfile
import tomllib
from pathlib import Path

import helm_python
import pytest
import yaml
from typer.testing import CliRunner

from emopfx.cli import app
from tests.chart.rendering import CHART, ROOT, Object, names, render, render_texts


def test_holds_what_is_needed_and_nothing_else(tmp_path: Path) -> None:
    copy = shutil.copytree(CHART, tmp_path / "emopfx")
    for junk in (
        "values.yaml.bak",
        "notes.txt~",
        "emopfx-0.0.1.tgz",
        "files/__pycache__/check_capture.cpython-311.pyc",
    ):
        (copy / junk).parent.mkdir(exist_ok=True)
        (copy / junk).write_text("junk")
    with tarfile.open(helm_python.package(copy, destination=tmp_path)) as archive:
        held = {Path(name).relative_to("emopfx").as_posix() for name in archive.getnames()}
    templates = {path.relative_to(CHART).as_posix() for path in CHART.glob("templates/**/*") if path.is_file()}
    files = {path.relative_to(CHART).as_posix() for kind in ("files", "dashboards") for path in CHART.glob(f"{kind}/*")}
    assert held == templates | files | {"Chart.yaml", "README.md", "values.yaml", "values.schema.json", ".helmignore"}


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    projects = [tomllib.loads((ROOT / path / "pyproject.toml").read_text()) for path in (".", "server")]
    assert {chart["appVersion"]} == {project["project"]["version"] for project in projects}


@pytest.fixture
def commands() -> list[list[str]]:
    """The commands that NOTES.txt tells, in order."""
    notes = render_texts({}, release="calm", namespace="research")["NOTES.txt"]
    lines = [line.strip() for line in notes.splitlines() if line.startswith("   ")]
    return [shlex.split(line) for line in lines if line.startswith(("kubectl ", "helm ", "emopfx "))]


def test_notes_name_what_is_there(commands: list[list[str]]) -> None:
    objects = render(release="calm", namespace="research")
    rollout, test, run, by_hand = commands
    assert rollout[:3] == ["kubectl", "--namespace", "research"]
    assert rollout[-1].removeprefix("deployment/") in names(objects, "Deployment")
    assert test == ["helm", "test", "calm", "--namespace", "research", "--logs"]
    assert by_hand[-1].removeprefix("--from=cronjob/") in names(objects, "CronJob")
    assert run[:2] == ["emopfx", "run"]


def notes(values: Object) -> str:
    return render_texts(values)["NOTES.txt"]


def test_notes_say_what_else_is_needed() -> None:
    monitored = {"serviceMonitor": {"enabled": True}}
    peer: Object = {"networkPolicy": {"extraIngressFrom": [{"namespaceSelector": {}}]}}
    assert "Prometheus can't reach the server yet" in notes(monitored)
    for values in ({}, {**monitored, **peer}, {**monitored, "networkPolicy": {"enabled": False}}):
        assert "Prometheus" not in notes(values)
    assert "EMOPFX_API_KEY" in notes({"apiKey": {"existingSecret": "door"}})
    assert "EMOPFX_API_KEY" not in notes({})


def test_notes_give_flags_that_emopfx_has(commands: list[list[str]]) -> None:
    [run] = [command for command in commands if command[0] == "emopfx"]
    assert CliRunner().invoke(app, [*run[1:], "--help"]).exit_code == 0
    assert CliRunner().invoke(app, [*run[1:], "--no-such-flag"]).exit_code == 2
