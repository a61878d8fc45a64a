"""What the tests of runs share: a small config, the command, and a check that nothing is lost or doubled."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from emopfx.layout import Layout, read_json
from emopfx.storage import files
from tests.e2e.namespace import CHART, Namespace, Object

# In the image of the Jobs; nothing of that name is here.
STORIES = "manifests/experiments/demo-stories.jsonl"
SECONDS = 300


def config(folder: Path, name: str = "nano", **changes: Any) -> Path:
    """Write a config of 8 samples × 8 variants on the built-in model, and return its path."""
    experiment = {
        "name": name,
        "model": {"name": "tiny", "dtype": "float32"},
        "dataset": {"path": STORIES, "samples": 8},
        "generation": {"max_tokens": 64},
        "capture": {"dtype": "float32"},
    }
    for key, change in changes.items():
        experiment[key] = {**experiment.get(key, {}), **change}  # type: ignore[dict-item]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(experiment))
    return path


@contextmanager
def started(
    namespace: Namespace, folder: Path, command: str, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start an emopfx command on the namespace, in a folder without datasets or charts; at the end it is gone."""
    line = [sys.executable, "-m", "emopfx.cli", command, "--namespace", namespace.name, *arguments]
    if command != "watch":
        line += ["--target", "kubernetes"]
    if command == "run":
        line += ["--chart", str(CHART)]
    own = {name: value for name, value in os.environ.items() if not name.startswith("EMOPFX_")}
    out, variables = subprocess.PIPE, {**own, **environment}
    with subprocess.Popen(line, cwd=folder, env=variables, stdout=out, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def emopfx(namespace: Namespace, folder: Path, command: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run an emopfx command on the namespace; return its exit code and what it printed."""
    with started(namespace, folder, command, *arguments, **environment) as process:
        out, _ = process.communicate(timeout=SECONDS)
        return process.returncode, out


def kubeconfig(folder: Path, cluster: Object | None = None, user: Object | None = None, **context: str) -> Path:
    """Write the present kubeconfig with changes to its cluster and its context, or another user; return its path."""
    view = ["kubectl", "config", "view", "--raw", "--flatten", "--minify", "--output", "json"]
    found = json.loads(subprocess.run(view, check=True, capture_output=True).stdout)
    found["clusters"][0]["cluster"] |= cluster or {}
    found["contexts"][0]["context"] |= context
    if user:
        found["users"][0]["user"] = user
    path = folder / "kubeconfig"
    path.write_text(json.dumps(found))
    return path


def record(namespace: Namespace, run: str) -> dict[str, Any]:
    """Return a run's record, its JSON parsed."""
    found = namespace.get("ConfigMap", f"emopfx-{run}")
    assert found is not None
    return {key: json.loads(text) if key.endswith(".json") else text for key, text in found["data"].items()}


def states(namespace: Namespace, run: str) -> dict[str, str]:
    return {stage: entry["state"] for stage, entry in record(namespace, run)["stages.json"].items()}


def jobs(namespace: Namespace, run: str) -> dict[str, Object]:
    """Return a run's Jobs by name."""
    return {job["metadata"]["name"]: job for job in namespace.find("Job", f"emopfx.dev/experiment={run}")}


def bring_here(namespace: Namespace, folder: Path, run: str) -> Layout:
    """Bring a run's results and activations here."""
    for command in ("fetch", "download-activations"):
        code, out = emopfx(namespace, folder, command, "--name", run)
        assert code == 0, out
    return Layout(folder / "results", run)


def check_whole(layout: Layout, expected: int) -> None:
    """Check that every sample is there once, with whole activations and nothing else beside them."""
    manifest = read_json(layout.manifest)
    samples = list(layout.folder.rglob("sample.json"))
    assert manifest is not None
    assert len(manifest) == len(samples) == expected
    for key, entry in manifest.items():
        assert files.problem(entry, layout.root, None, checksums=True) is None
        folder = layout.root / entry["save_dir"]
        assert [path.name for path in folder.parent.iterdir()] == [folder.name], f"{key} was saved more than once"
    report = read_json(layout.report("json"))
    assert report is not None
    assert (report["found"], report["missing"]) == (expected, [])
    for entry in report["statistics"]["variants"]:
        answers = [sample for path in samples if (sample := read_json(path)) and sample["variant"] == entry["variant"]]
        assert entry["n"] == len(answers) == expected // 8
        assert entry["correct"] == sum(answer["metrics"]["correct"] for answer in answers)


def fingerprint(layout: Layout) -> dict[str, str]:
    """Return the checksum of every file of a run."""
    paths = sorted(path for path in layout.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(layout.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
