"""How much faster the probes are than scikit-learn's LogisticRegression at the same held-out accuracy.

Both do the same fits on the same made-up activations: for each place, eight variants at once, each variant against
control, and right against wrong; five folds each, with true and with shuffled labels. Places are independent, so a few
stand for all. Times of one thread are its processor seconds, as other work on the machine doesn't count then; of
several threads, they are seconds by the clock.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from emopfx.analysis.crossvalidation import Held, assign_folds, cross_validate, curvature_of
from emopfx.analysis.logistic import Curvature
from emopfx.analysis.tasks import Floats, Ints, Task, correct_task, variant_tasks
from emopfx.config import Probes

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


def by_emopfx(rows: Floats, question: Ints, task: Task, c: float, curvature: Curvature) -> Held:
    """Fit and score one task at one place."""
    own = question[task.rows]
    return cross_validate(rows[task.rows], own, assign_folds(own, FOLDS, 0), task, c, 0, curvature)


def by_scikit_learn(rows: Floats, held: Held, labels: Ints, c: float) -> float:
    """Fit and score one task at one place fold by fold, and return its held-out accuracy."""
    hits = 0
    for fold in np.unique(held.fold):
        train, test = held.fold != fold, held.fold == fold
        mean, scale = rows[train].mean(axis=0), rows[train].std(axis=0)
        model = LogisticRegression(C=c, max_iter=1000).fit((rows[train] - mean) / scale, labels[train])
        hits += int((model.predict((rows[test] - mean) / scale) == labels[test]).sum())
    return hits / len(labels)


def measure(sites: int, samples: int, width: int, c: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Run both and return the report."""
    rows, (tasks, question) = make_rows(sites, samples, width), make_tasks(samples)
    started = clock()
    held = []
    for site in rows:
        curvature = curvature_of(site, c)
        held.append([by_emopfx(site, question, task, c, curvature) for task in tasks])
    ours = clock() - started
    differences = []
    started = clock()
    for site, found in zip(rows, held, strict=True):
        for task, one in zip(tasks, found, strict=True):
            theirs = by_scikit_learn(site[task.rows], one, one.task.labels, c)
            by_scikit_learn(site[task.rows], one, one.shuffled_labels, c)
            differences.append(100 * (one.accuracy().value - theirs))
    theirs_seconds = clock() - started
    return {
        "probes_vs_scikit_learn": round(theirs_seconds / ours, 1),
        "seconds_a_place": {"emopfx": round(ours / sites, 1), "scikit-learn": round(theirs_seconds / sites, 1)},
        "accuracy_points_above_scikit_learn": {
            "mean": round(float(np.mean(differences)), 2),
            "largest": round(max(map(abs, differences)), 2),
        },
        "sites": sites,
        "samples": samples,
        "width": width,
        "tasks": len(tasks),
        "c": c,
    }


def show(report: dict[str, Any]) -> None:
    """Print the report."""
    table = Table()
    table.add_column(f"{report['tasks']} tasks, {report['samples']:,} × {report['width']:,}, C = {report['c']}")
    table.add_column(f"seconds a place, {report['threads']} thread(s)", justify="right")
    for name, seconds in report["seconds_a_place"].items():
        table.add_row(name, str(seconds))
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
    parser.add_argument("--threads", type=int, default=1, help="of both (default: 1)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "probes.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.threads == 1 else time.monotonic
    with threadpool_limits(asked.threads):
        report = {"threads": asked.threads, **measure(asked.sites, asked.samples, asked.width, asked.c, clock)}
    show(report)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
