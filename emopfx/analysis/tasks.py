"""What probes are to tell apart, and what is taken out of the rows so that nothing else can be."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

VARIANT = "variant"
CORRECT = "correct"


@dataclass(frozen=True)
class Task:
    """What a probe is to tell apart.

    Attributes:
        name: Its name in the report.
        classes: Names of the classes; of two, the second is the positive one.
        labels: The index of each row's class, `[n]`.
        rows: Which of all rows are in the task, `[n]`.
    """

    name: str
    classes: tuple[str, ...]
    labels: Ints
    rows: Ints


def variant_tasks(variants: list[str], baseline: str, question: Ints) -> list[Task]:
    """Return the tasks of telling variants apart: all of them, and each from the baseline."""
    names, own = list(dict.fromkeys(variants)), np.array(variants)
    tasks = []
    if len(names) > 2:
        labels = np.array([names.index(variant) for variant in variants])
        tasks.append(_without_empty(_task(VARIANT, tuple(names), labels, question)))
    for name in names if baseline in names else []:
        if name != baseline:
            labels = np.select([own == name, own == baseline], [1, 0], -1)
            tasks.append(_task(f"{name} vs {baseline}", (baseline, name), labels, question))
    return tasks


def correct_task(correct: list[bool], question: Ints) -> Task:
    """Return the task of telling right answers from wrong ones to the same question."""
    return _task(CORRECT, ("wrong", "right"), np.array(correct, np.int64), question)


def _task(name: str, classes: tuple[str, ...], labels: Ints, question: Ints) -> Task:
    """Return a task of the rows with a label, without questions that have one class: they tell of no difference."""
    codes, question = np.unique(question, return_inverse=True)
    has = np.zeros((len(codes), len(classes)), bool)
    has[question[labels >= 0], labels[labels >= 0]] = True
    rows = np.flatnonzero((has.sum(axis=1) > 1)[question] & (labels >= 0))
    return Task(name, classes, labels[rows], rows)


def _without_empty(task: Task) -> Task:
    """Return a task without the classes of which no row is left; one of which nothing is left stays as it is."""
    kept = np.unique(task.labels)
    if not len(kept):
        return task
    classes = tuple(task.classes[label] for label in kept)
    return Task(task.name, classes, np.searchsorted(kept, task.labels), task.rows)


def centre(rows: Floats, question: Ints, variant: Ints, fold: Ints) -> Floats:
    """Take the means of questions and of variants out of rows, `[n, width]`: what is left is of the single answers.

    Variants differ in accuracy and in activations, so that a probe that only saw the variant would seem to know what
    is right. Both means come out at once, by least squares (Frisch and Waugh 1933, Econometrica 1:387-401), whether or
    not every variant has answered every question. It needs no labels. It is done within each fold, and not once over
    all rows: then the variant's mean over the training rows would be the opposite of that over the held-out ones, and
    a probe that learned from the one would err on the other.

    Args:
        rows: Features, `[n, width]`.
        question: The question of each row, `[n]`.
        variant: The variant of each row, `[n]`.
        fold: The fold of each row, `[n]`; the rows of a question share one.
    """
    # Rows of one variant in one fold are marked by a column of ones, [n, cells].
    cells = np.unique(np.stack([fold, variant]), axis=1, return_inverse=True)[1].ravel()
    marks = _without_means(np.eye(cells.max() + 1)[cells], question)
    left, size, _ = np.linalg.svd(marks, full_matrices=False)
    basis = left[:, size > 1e-9 * len(rows)]
    within = _without_means(rows.astype(np.float64), question)
    return np.asarray(within - basis @ (basis.T @ within), dtype=np.float32)


def _without_means(rows: npt.NDArray[np.float64], question: Ints) -> npt.NDArray[np.float64]:
    """Subtract each question's mean from its rows."""
    order = np.argsort(question, kind="stable")
    starts = np.flatnonzero(np.diff(question[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    means = np.add.reduceat(rows[order], starts, axis=0) / counts[:, None]
    centred = np.empty_like(rows)
    centred[order] = rows[order] - np.repeat(means, counts, axis=0)
    return centred
