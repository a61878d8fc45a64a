"""Variants that steer, on the real server and the built-in model."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from emopfx.layout import Layout, read_json
from tests.integration.test_run_local import STORIES, emopfx

STEER = {"kind": "add", "layer": 1, "vector": "made/artifacts/v.safetensors#calm", "scale": 4}


def write_config(path: Path, *interventions: dict[str, Any]) -> Path:
    variants = ["control", {"name": "steer", "interventions": list(interventions)}]
    config = {
        "name": "nano",
        "model": {"name": "tiny", "dtype": "float32"},
        "dataset": {"path": str(STORIES), "samples": 3},
        "generation": {"max_tokens": 30, "temperature": 0.0},
        "variants": variants,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_variant_may_steer(tmp_path: Path) -> None:
    root = tmp_path / "results"
    config = write_config(tmp_path / "nano.yaml", STEER)
    code, _, error = emopfx(root, "run", "-f", str(config))
    assert code == 2
    assert "variants: there is no vector file" in error
    assert "Traceback" not in error

    vector = root / "made" / "artifacts" / "v.safetensors"
    vector.parent.mkdir(parents=True)
    save_file({"calm": torch.randn(64, generator=torch.manual_seed(0))}, vector)
    code, _, error = emopfx(root, "run", "-f", str(config))
    assert code == 0, error
    manifest = read_json(Layout(root, "nano").manifest)
    assert manifest is not None
    answers: dict[str, list[str]] = {"control": [], "steer": []}
    for key, entry in manifest.items():
        variant = key.split("/")[0]
        metadata = json.loads((root / entry["save_dir"] / "metadata.json").read_text())
        answers[variant].append(metadata["answer"]["text"])
        done = [(one["kind"], one["layer"], one["scale"]) for one in metadata["interventions"]]
        assert done == ([("add", 1, 4.0)] if variant == "steer" else [])
    assert answers["control"] != answers["steer"]

    code, _, error = emopfx(root, "generate", "-f", str(config))
    assert "6 of 6 already done" in error
    save_file({"calm": torch.zeros(64)}, vector)
    code, _, error = emopfx(root, "generate", "-f", str(config))
    assert code == 2
    assert "vectors" in error
