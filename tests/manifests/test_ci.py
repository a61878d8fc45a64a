"""What CI runs: which files the GitHub Actions workflow takes for changed, and what the script refuses."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

CI = Path(__file__).parents[2] / "manifests" / "ci"
needs_jq = pytest.mark.skipif(not shutil.which("jq"), reason="GitHub has jq on its runners, this machine has not")
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


@needs_jq
def test_changed_files(repository: Path) -> None:
    before = git(repository, "rev-parse", "HEAD").strip()
    (repository / "manifests" / "experiments" / "gone.yaml").unlink()
    commit(repository, {"new one.yaml": "name: new", "stories.jsonl": '{"more": 1}'})
    assert changed(repository, before) == ["new one.yaml"]


@needs_jq
@pytest.mark.parametrize("before", [NO_COMMIT, "f" * 40])
def test_every_file_has_changed_without_a_commit_before(repository: Path, before: str) -> None:
    assert changed(repository, before) == ["gone.yaml", "old.yaml"]


@needs_jq
def test_nothing_has_changed(repository: Path) -> None:
    before = git(repository, "rev-parse", "HEAD").strip()
    commit(repository, {"stories.jsonl": '{"more": 1}'})
    assert changed(repository, before) == []


@pytest.mark.parametrize(
    "text", ["name: foo_bar", "name: Foo", "name: -a", "name: 'a b'", f"name: {'a' * 41}", "nam: a", ""]
)
def test_the_script_refuses_a_name_that_can_t_be(tmp_path: Path, text: str) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(f"{text}\nmodel: {{name: tiny}}\n")
    done = subprocess.run([CI / "apply.sh", file], capture_output=True, text=True, check=False)
    sentence = f"{file}: it needs a line 'name: …' with 1 to 40 of a-z, 0-9 and - (not at its ends)\n"
    assert (done.returncode, done.stderr) == (2, sentence)


@pytest.mark.parametrize("text", ["name: foo-bar", 'name: "foo-bar"', "name: 'foo-bar'  # why", "name:   foo-bar "])
def test_the_script_applies_under_the_name(tmp_path: Path, text: str) -> None:
    """With a kubectl that passes on what it is given, and says what it was asked for."""
    file, kubectl = tmp_path / "experiment.yaml", tmp_path / "kubectl"
    file.write_text(f"{text}\n")
    kubectl.write_text('#!/bin/sh\necho "$@" >&2\n')
    kubectl.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [CI / "apply.sh", file], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    assert f"create configmap emopfx-foo-bar --from-file=experiment.yaml={file} " in done.stderr
    assert " emopfx.dev/experiment=foo-bar emopfx.dev/release=emopfx" in done.stderr
