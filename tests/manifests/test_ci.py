"""The GitHub Actions workflow: which files it takes for changed."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

CI = Path(__file__).parents[2] / "manifests" / "ci"
pytestmark = pytest.mark.skipif(not shutil.which("jq"), reason="GitHub has jq on its runners, this machine has not")
NO_COMMIT = "0" * 40


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "manifests" / "experiments").mkdir(parents=True)
    git(folder, "init", "--quiet")
    commit(folder, {"old.yaml": "name: old", "gone.yaml": "name: gone", "stories.jsonl": "{}"})
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / "manifests" / "experiments" / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "change")
    return git(folder, "rev-parse", "HEAD").strip()


def changed(folder: Path, before: str) -> list[str]:
    steps = yaml.safe_load((CI / "github-actions.yaml").read_text())["jobs"]["changed"]["steps"]
    [script] = [step["run"] for step in steps if step.get("id") == "changed"]
    output = folder.parent / "output"
    environment = {**os.environ, "BEFORE": before, "GITHUB_OUTPUT": str(output)}
    subprocess.run(["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, check=True, env=environment)
    return [Path(file).name for file in json.loads(output.read_text().removeprefix("files="))]


def test_changed_files(repository: Path) -> None:
    before = git(repository, "rev-parse", "HEAD").strip()
    (repository / "manifests" / "experiments" / "gone.yaml").unlink()
    commit(repository, {"new one.yaml": "name: new", "stories.jsonl": '{"more": 1}'})
    assert changed(repository, before) == ["new one.yaml"]


@pytest.mark.parametrize("before", [NO_COMMIT, "f" * 40])
def test_every_file_has_changed_without_a_commit_before(repository: Path, before: str) -> None:
    assert changed(repository, before) == ["gone.yaml", "old.yaml"]


def test_nothing_has_changed(repository: Path) -> None:
    before = git(repository, "rev-parse", "HEAD").strip()
    commit(repository, {"stories.jsonl": '{"more": 1}'})
    assert changed(repository, before) == []
