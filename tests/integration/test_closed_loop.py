"""From a run's activations to a direction, and from the direction back into a run, on the built-in model."""

from pathlib import Path
from typing import Any

import yaml

from emopfx.layout import read_json
from tests.integration.test_run_local import STORIES, emopfx

VECTOR = "seen/artifacts/probes/vectors/last_prompt/calm-vs-control-mean.safetensors"


def run(root: Path, name: str, variants: list[Any], **more: Any) -> dict[str, Any]:
    config = {
        "name": name,
        "model": {"name": "tiny", "dtype": "float32"},
        "dataset": {"path": str(STORIES), "samples": 12},
        "generation": {"max_tokens": 40, "temperature": 0.0},
        "variants": variants,
        "capture": {"hook_points": ["output"], "dtype": "float32"},
        **more,
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    code, _, error = emopfx(root, "run", "-f", str(root / f"{name}.yaml"))
    assert code == 0, error
    report = read_json(root / name / "report.json")
    assert report is not None
    return report


def steer(name: str, scale: float) -> dict[str, Any]:
    added = {"kind": "add", "layer": 1, "hook_point": "output", "vector": VECTOR, "scale": scale}
    return {"name": name, "interventions": [added]}


def test_a_direction_that_a_run_has_found_changes_the_answers_of_the_next(tmp_path: Path) -> None:
    probes = {"probes": {"features": ["last_prompt"]}}
    seen = run(tmp_path, "seen", ["control", "calm"], analysis=probes)
    (calm,) = (task for task in seen["probes"]["tasks"] if task["name"] == "calm vs control")
    assert max(probe["auc"]["value"] for probe in calm["probes"]) > 0.8

    steered = run(tmp_path, "steered", ["control", steer("not-at-all", 0.0), steer("far", 20.0)], analysis=probes)
    variants = {entry["variant"]: entry for entry in steered["statistics"]["variants"]}
    assert variants["not-at-all"]["correct"] == variants["control"]["correct"]
    assert variants["far"]["correct"] < variants["control"]["correct"]
    lost = {
        entry["variant"]: entry["right_to_wrong"]
        for entry in steered["statistics"]["comparisons"]
        if entry["baseline"] == "control"
    }
    assert lost["not-at-all"] == []
    assert lost["far"]
    # Where it was added, a probe sees it; before that, there is nothing to see but the rounding of other batches.
    (far,) = (task for task in steered["probes"]["tasks"] if task["name"] == "far vs control")
    auc = {probe["layer"]: probe["auc"]["value"] for probe in far["probes"]}
    assert abs(auc[0] - 0.5) < 0.2
    assert auc[1] == 1.0
