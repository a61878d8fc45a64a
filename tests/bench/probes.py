"""How much faster the probes are than scikit-learn's LogisticRegression at the same held-out accuracy.

Both do the same fits on the same made-up activations: for each place, eight variants at once, each variant against
control, and right against wrong; five folds each, with true and with shuffled labels. Places are independent, so a few
stand for all. Each is timed by the clock with one thread and with all cores, and compared at the faster of the two:
scikit-learn's is often the first.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from emopfx.analysis.crossvalidation import Held, assign_folds, cross_validate, features_of
from emopfx.analysis.curvature import Curvature, Features
from emopfx.analysis.tasks import Floats, Ints, Task, correct_task, variant_tasks
from emopfx.config import Probes
from tests.bench.throughput import machine

HERE = Path(__file__).parent
VARIANTS = ["control", "frustration", "impatience", "anxiety", "collaborative", "patience", "calm", "neutral"]
FACTORS = 256
FOLDS = 5


def make_rows(sites: int, samples: int, width: int) -> Floats:
    """Return activations, `[sites, samples, width]`: correlated features, and a direction for every variant."""
    draw = np.random.default_rng(0)
    rows = np.empty((sites, samples, width), np.float32)
    for site in range(sites):
        factors = draw.normal(size=(samples, FACTORS)) * np.linspace(3, 0.2, FACTORS)
        directions = draw.normal(size=(len(VARIANTS), width)) * 0.02
        mixed = factors @ draw.normal(size=(FACTORS, width)) / 16
        rows[site] = mixed + directions[np.arange(samples) % len(VARIANTS)] + draw.normal(size=(samples, width)) / 2
    return rows


def make_tasks(samples: int) -> tuple[list[Task], Ints]:
    """Return the tasks, and the question of each sample."""
    question = np.arange(samples) // len(VARIANTS)
    names = [VARIANTS[number % len(VARIANTS)] for number in range(samples)]
    right = np.random.default_rng(1).integers(0, 2, samples)
    return [*variant_tasks(names, VARIANTS[0], question), correct_task((right == 1).tolist(), question)], question


def by_emopfx(features: Features, question: Ints, task: Task, c: float, curvature: Curvature) -> Held:
    """Fit and score one task at one place."""
    own = question[task.rows]
    return cross_validate(features.part(task.rows), own, assign_folds(own, FOLDS, 0), task, c, 0, curvature)


def by_scikit_learn(rows: Floats, held: Held, labels: Ints, c: float) -> float:
    """Fit and score one task at one place fold by fold, and return its held-out accuracy."""
    hits = 0
    for fold in np.unique(held.fold):
        train, test = held.fold != fold, held.fold == fold
        mean, scale = rows[train].mean(axis=0), rows[train].std(axis=0)
        model = LogisticRegression(C=c, max_iter=1000).fit((rows[train] - mean) / scale, labels[train])
        hits += int((model.predict((rows[test] - mean) / scale) == labels[test]).sum())
    return hits / len(labels)


def measure(sites: int, samples: int, width: int, c: float, threads: list[int]) -> dict[str, Any]:
    """Run both with each number of threads, and return the report."""
    rows, (tasks, question) = make_rows(sites, samples, width), make_tasks(samples)
    seconds: dict[str, dict[int, float]] = {"emopfx": {}, "scikit-learn": {}}
    for count in threads:
        torch.set_num_threads(count)
        with threadpool_limits(count):
            started = time.monotonic()
            held = [probe(site, question, tasks, c) for site in rows]
            between = time.monotonic()
            differences = [100 * far for site, own in zip(rows, held, strict=True) for far in compare(site, own, c)]
            seconds["emopfx"][count] = round((between - started) / sites, 1)
            seconds["scikit-learn"][count] = round((time.monotonic() - between) / sites, 1)
    return {
        "probes_vs_scikit_learn": round(min(seconds["scikit-learn"].values()) / min(seconds["emopfx"].values()), 1),
        "seconds_a_place": seconds,
        "accuracy_points_above_scikit_learn": {
            "mean": round(float(np.mean(differences)), 2),
            "largest": round(max(map(abs, differences)), 2),
        },
        "sites": sites,
        "samples": samples,
        "width": width,
        "tasks": len(tasks),
        "c": c,
        "machine": machine(),
    }


def probe(rows: Floats, question: Ints, tasks: list[Task], c: float) -> list[Held]:
    """Fit and score all tasks at one place."""
    features = features_of(rows)
    curvature = Curvature(features, c)
    return [by_emopfx(features, question, task, c, curvature) for task in tasks]


def compare(rows: Floats, held: list[Held], c: float) -> Iterator[float]:
    """Do the same with scikit-learn, and yield by how much our held-out accuracy is above its at each task."""
    for own in held:
        theirs = by_scikit_learn(rows[own.task.rows], own, own.task.labels, c)
        by_scikit_learn(rows[own.task.rows], own, own.shuffled_labels, c)
        yield own.accuracy().value - theirs


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    table = Table()
    table.add_column(f"{report['tasks']} tasks, {report['samples']:,} × {report['width']:,}")
    for count in report["seconds_a_place"]["emopfx"]:
        table.add_column(f"s a place, {count} thread{'s' * (count > 1)}", justify="right")
    for name, seconds in report["seconds_a_place"].items():
        table.add_row(name, *map(str, seconds.values()))
    console = Console()
    console.print(table)
    console.print(f"{report['probes_vs_scikit_learn']} times as fast as scikit-learn", highlight=False)
    found = report["accuracy_points_above_scikit_learn"]
    console.print(
        f"held-out accuracy {found['mean']:+} points, at no task by more than {found['largest']}", highlight=False
    )


def main() -> None:
    """Measure, show, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=1, help="places (default: 1)")
    parser.add_argument("--samples", type=int, default=10_000, help="default: 10,000")
    parser.add_argument("--width", type=int, default=4096, help="default: 4096")
    parser.add_argument("--c", type=float, default=Probes().c, help="inverse of the penalty's strength")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "probes.json")
    asked = parser.parse_args()
    threads = sorted({1, len(os.sched_getaffinity(0))})
    report = measure(asked.sites, asked.samples, asked.width, asked.c, threads)
    show(report)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
