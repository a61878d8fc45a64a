"""A made-up experiment on disk, of any size, with all that a report can show."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from emopfx.analysis.answers import Answers
from emopfx.analysis.schema import Report
from emopfx.analysis.statistics import statistics
from emopfx.config_file import parse
from emopfx.config_identity import identity
from emopfx.layout import Layout
from emopfx.record import Record
from emopfx.stages.analyze import frame

WORDS = [
    f"{a}{b}{c}" for a in ("ba", "co", "di", "fu", "ge", "lo") for b in ("ra", "mi", "te", "nu") for c in "abcdefghij"
]
VARIANTS = ["control", "frustration", "impatience", "anxiety", "patience", "calm", "neutral"]
LAYERS, HOOKS = 8, ("input_layernorm.output", "post_attention_layernorm.output")
PROBE = "calm vs control, layer 5"
# The best probe of each variant, and of right answers.
PROJECTIONS = [PROBE, *(f"{name} vs control, layer 5" for name in VARIANTS[1:] if name != "calm"), "correct, layer 5"]


def make(root: Path, questions: int, words: int) -> tuple[Layout, Answers, Report]:
    """Write an experiment's answers and projections, and return it with a report that has probes and SAEs.

    Args:
        root: The folder of all results.
        questions: How many questions each variant has.
        words: Length of an answer.
    """
    draw = np.random.default_rng(0)
    config = parse({"name": "made-up", "model": {"name": "tiny"}, "variants": VARIANTS}, "test")
    ids = [f"x_{number:04d}" for number in range(1, questions + 1)]
    record = Record.start(
        Layout(root, "made-up"), config, identity(config, {}), {"path": "x.jsonl", "sample_ids": ids}, []
    )
    layout = record.layout
    hard = draw.random(questions)
    lines = []
    for variant, lift in zip(VARIANTS, draw.normal(0, 0.06, len(VARIANTS)), strict=True):
        for number, sample_id in enumerate(ids):
            text = " ".join(WORDS[i] for i in np.minimum(draw.zipf(1.3, words), len(WORDS)) - 1)
            right, length = bool(draw.random() > hard[number] * 0.6 + lift), int(words * draw.normal(1.3, 0.1))
            _write(record, variant, sample_id, text, correct=right, length=length)
            tokens = [f" {word}" for word in text.split()]
            values = {name: draw.normal(0, 1, len(tokens)).round(2).tolist() for name in PROJECTIONS}
            lines.append(json.dumps({"key": f"{variant}/{sample_id}", "tokens": tokens, "values": values}))
    projections = layout.artifacts / "probes" / "projections.jsonl"
    projections.parent.mkdir(parents=True)
    projections.write_text("\n".join(lines) + "\n")
    answers = Answers.read(record)
    content = frame(record, answers) | {
        "statistics": statistics(answers, 300),
        "activations": {"answers": len(answers.finished), "unreadable": {"calm/x_0003": "there is no file"}},
        "probes": _probes(draw),
        "sae": _saes(draw),
    }
    return layout, answers, Report.model_validate(content)


def _write(record: Record, variant: str, sample_id: str, text: str, *, correct: bool, length: int) -> None:
    folder = record.layout.sample(f"{variant}/{sample_id}")
    folder.mkdir(parents=True)
    metrics = {"correct": correct, "format": True, "completion_tokens": length, "prompt_tokens": 30}
    sample = {
        "sample_id": sample_id,
        "question": f"What is <b>{sample_id}</b>? {text[:150]}",
        "variant": variant,
        "repeat": 1,
        "prefix": None if variant == "control" else f"I feel {variant}.",
        "config_hash": record.hash,
        "metrics": {
            **metrics,
            "finish_reason": "stop" if length % 9 else "length",
            "gold": "7",
            "answer": "7" if correct else None,
        },
        "breadcrumb": None,
    }
    (folder / "sample.json").write_text(json.dumps(sample))
    turns = [{"role": "user", "content": "…"}, {"role": "assistant", "content": text}]
    (folder / "trajectory.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))


def _estimate(value: float, half: float = 0.04) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def _probes(draw: np.random.Generator) -> dict[str, Any]:
    def task(name: str, classes: list[str], chance: float) -> dict[str, Any]:
        probes = []
        for layer in range(LAYERS):
            for height, hook in zip((0.4, 0.3), HOOKS, strict=True):
                accuracy = chance + height * float(np.exp(-((layer - 5) ** 2) / 6))
                shuffled = chance + float(draw.normal(0, 0.01))
                figures = {
                    "accuracy": _estimate(accuracy),
                    "auc": _estimate(accuracy),
                    "shuffled": _estimate(shuffled, 0.03),
                }
                probes.append({"layer": layer, "hook_point": hook, **figures, "selectivity": accuracy - shuffled})
        counts = {"samples": 100, "questions": 50, "majority": chance}
        return {"name": name, "feature": "last_prompt", "classes": classes, **counts, "probes": probes}

    tasks = [task("variant", VARIANTS, 0.2), task("calm vs control", ["control", "calm"], 0.5)]
    return {
        "folds": 5,
        "c": 1.0,
        "tasks": tasks,
        "skipped": [{"name": "correct", "feature": "last_prompt", "reason": "every answer is right"}],
        "projections": PROJECTIONS,
    }


def _saes(draw: np.random.Generator) -> dict[str, Any]:
    features = []
    for number in range(12):
        value = float(draw.normal(0, 0.4))
        difference = {"value": value, "low": value - 0.1, "high": value + 0.1}
        features.append(
            {
                "feature": 37 * number,
                "variant": VARIANTS[1 + number % 6],
                "difference": difference,
                "q": 0.01,
                "active": 0.02,
            }
        )
    size = {"width": 512, "k": 16, "tokens": 90_000, "explained_variance": 0.87, "dead": 4}
    return {
        "baseline": "control",
        "skipped": [],
        "saes": [{"layer": 5, "hook_point": HOOKS[0], **size, "features": features}],
    }
