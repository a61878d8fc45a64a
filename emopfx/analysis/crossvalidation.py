"""Scores probes on questions that they were not trained on, and on labels that mean nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from emopfx.analysis import inference, logistic
from emopfx.analysis.curvature import Curvature, Features
from emopfx.analysis.logistic import Problems
from emopfx.analysis.schema import Estimate
from emopfx.analysis.tasks import Floats, Ints, Task


@dataclass(frozen=True)
class Held:
    """One task at one place.

    Attributes:
        task: The task.
        shuffled_labels: The labels that the control was trained and scored on.
        fold: The fold in which each row was held out, `[n]`.
        question: The question of each row, `[n]`.
        logits: Held-out logits, `[columns, n]`; two classes have one column.
        shuffled: Those of the same probe trained on the shuffled labels.
        weights: Of a probe trained on all rows, in logits per unit of the rows as they are, `[columns, width]`.
        bias: `[columns]`.
    """

    task: Task
    shuffled_labels: Ints
    fold: Ints
    question: Ints
    logits: Floats
    shuffled: Floats
    weights: Floats
    bias: Floats

    def accuracy(self, *, shuffled: bool = False) -> Estimate:
        """Return the share of held-out rows that are told right, with its interval clustered by question."""
        logits, labels = (self.shuffled, self.shuffled_labels) if shuffled else (self.logits, self.task.labels)
        named = logits.argmax(0) if len(logits) > 1 else (logits[0] > 0).astype(np.int64)
        return inference.clustered_share((named == labels).astype(float), self.question)

    def auc(self) -> Estimate:
        """Return the area under the ROC curve within folds, with its interval clustered by question.

        Its mean over all classes against the rest, where there are more than two. The interval is DeLong's with the
        rows of a question taken together (Obuchowski 1997, Biometrics 53:567-578).
        """
        logits, labels, fold = self.logits, self.task.labels, self.fold
        if len(logits) == 1:
            values = _placements(logits[0], labels == 1, fold)
        else:
            scores = logits - np.logaddexp.reduce(logits, axis=0)
            values = np.mean([_placements(s, labels == k, fold) for k, s in enumerate(scores)], axis=0)
        if np.ptp(values) < 1e-12:
            return Estimate(value=float(values[0]), low=None, high=None)
        found = inference.clustered_mean(values, self.question)
        if found.low is None or found.high is None:
            return found
        return Estimate(value=found.value, low=max(0.0, found.low), high=min(1.0, found.high))

    def majority(self) -> float:
        """Return the held-out accuracy of always naming the class that is most frequent in training."""
        labels, hits = self.task.labels, 0
        for fold in np.unique(self.fold):
            trained = labels[self.fold != fold]
            hits += int((labels[self.fold == fold] == np.bincount(trained).argmax()).sum())
        return hits / len(labels)


def _placements(scores: Floats, positive: npt.NDArray[np.bool_], fold: Ints) -> npt.NDArray[np.float64]:
    """Return a value per row whose mean is the AUC, and whose spread is the AUC's.

    A row's value is the AUC and its own share in what is above it: how many rows of the other class in its fold it
    beats (ties count half), less how many it would beat if it were like the others.
    """
    beaten, faced = np.zeros(len(scores)), np.zeros(len(scores))
    for number in np.unique(fold):
        here = np.flatnonzero(fold == number)
        ranks, own = rankdata(scores[here]), positive[here]
        for side, others in ((own, ~own), (~own, own)):
            below = ranks[side] - rankdata(scores[here[side]])
            beaten[here[side]] = below if side is own else others.sum() - below
            faced[here[side]] = others.sum()
    pairs = faced[positive].sum()
    auc = beaten[positive].sum() / pairs
    return np.asarray(auc + (beaten - auc * faced) * len(scores) / pairs)


def shuffle_within(labels: Ints, question: Ints, draw: np.random.Generator) -> Ints:
    """Permute labels among the rows of each question, which keeps all that is known of a question but the truth."""
    shuffled = np.empty_like(labels)
    shuffled[np.argsort(question, kind="stable")] = labels[np.lexsort((draw.random(len(labels)), question))]
    return shuffled


def assign_folds(question: Ints, folds: int, seed: int) -> Ints:
    """Return each row's fold; the rows of a question share one, and folds differ by at most one question."""
    codes, place = np.unique(question, return_inverse=True)
    return np.asarray(np.random.default_rng(seed).permutation(len(codes))[place] % min(folds, len(codes)))


def features_of(rows: Floats) -> Features:
    """Standardise rows, `[n, width]`, on the GPU where there is one."""
    return Features.of(_on_device(rows))


def _on_device(values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values).to("cuda" if torch.cuda.is_available() else "cpu")


def cross_validate(
    features: Features, question: Ints, fold: Ints, task: Task, c: float, seed: int, curvature: Curvature
) -> Held:
    """Train and score a task, all at once: each fold, its control with shuffled labels, and all rows.

    The control is that of Hewitt & Liang 2019 (arXiv:1909.03368): what the same probe reaches on labels that the
    activations can't know. Here these are the labels of each question in another order.

    Args:
        features: The rows of the task, `[n, width]`.
        question: The question of each row, `[n]`.
        fold: The fold of each row (see `assign_folds`); at least two.
        task: The task.
        c: The inverse of the penalty's strength, as in scikit-learn.
        seed: Of the shuffling.
        curvature: Of the rows, or of those they are a part of.
    """
    count = int(fold.max()) + 1
    shuffled = shuffle_within(task.labels, question, np.random.default_rng(seed))
    trained = [fold != held for held in range(count)]
    masks = [*trained, *trained, np.ones(len(fold), bool)]
    labels = [task.labels] * count + [shuffled] * count + [task.labels]
    problems = Problems(
        masks=_on_device(np.stack(masks)).float(),
        labels=_on_device(np.stack(labels)),
        classes=len(task.classes),
        c=c,
    )
    fits = logistic.fit(features, problems, curvature)
    logits, at = fits.logits.cpu().numpy(), fold[None, None, :]
    return Held(
        task=task,
        shuffled_labels=shuffled,
        fold=fold,
        question=question,
        logits=np.take_along_axis(logits[:count], at, axis=0)[0],
        shuffled=np.take_along_axis(logits[count : 2 * count], at, axis=0)[0],
        weights=fits.weights[-1].cpu().numpy(),
        bias=fits.bias[-1].cpu().numpy(),
    )
