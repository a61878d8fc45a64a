"""Scores probes on questions that they were not trained on, and on labels that mean nothing."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from emopfx.analysis import inference, logistic
from emopfx.analysis.logistic import Fits, Problems
from emopfx.analysis.schema import Estimate

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What a probe is to tell apart.

    Attributes:
        name: Its name in the report.
        classes: Names of the classes; of two, the second is the positive one.
        labels: The index of each row's class, -1 for a row that is not in the task, `[n]`.
    """

    name: str
    classes: tuple[str, ...]
    labels: Ints


@dataclass(frozen=True)
class Held:
    """One task at many sites.

    Attributes:
        task: The task.
        shuffled_labels: The labels that the control was trained and scored on.
        fold: The fold in which each row was held out, `[n]`.
        question: The question of each row, `[n]`.
        logits: Held-out logits, `[sites, classes (1 for two), n]`.
        shuffled: Those of the same probe trained on the shuffled labels.
        weights: Of a probe trained on all rows, in units of the rows as they are, `[sites, classes (1), width]`.
        bias: `[sites, classes (1)]`.
    """

    task: Task
    shuffled_labels: Ints
    fold: Ints
    question: Ints
    logits: Floats
    shuffled: Floats
    weights: Floats
    bias: Floats

    def accuracy(self, site: int, *, shuffled: bool = False) -> Estimate:
        """Return the share of held-out rows that are told right, with its interval clustered by question."""
        logits, labels = (self.shuffled, self.shuffled_labels) if shuffled else (self.logits, self.task.labels)
        named = logits[site].argmax(0) if logits.shape[1] > 1 else (logits[site, 0] > 0).astype(np.int64)
        rows = labels >= 0
        return inference.clustered_share((named == labels)[rows].astype(float), self.question[rows])

    def auc(self, site: int) -> Estimate:
        """Return the area under the ROC curve within folds, with its interval clustered by question.

        Its mean over all classes against the rest, where there are more than two. The interval is DeLong's with the
        rows of a question taken together (Obuchowski 1997, Biometrics 53:567-578).
        """
        rows = self.task.labels >= 0
        logits, labels, fold = self.logits[site][:, rows], self.task.labels[rows], self.fold[rows]
        if len(logits) == 1:
            values = _placements(logits[0], labels == 1, fold)
        else:
            scores = logits - np.logaddexp.reduce(logits, axis=0)
            values = np.mean([_placements(s, labels == k, fold) for k, s in enumerate(scores)], axis=0)
        if np.ptp(values) < 1e-12:
            return Estimate(value=float(values[0]), low=None, high=None)
        found = inference.clustered_mean(values, self.question[rows])
        if found.low is None or found.high is None:
            return found
        return Estimate(value=found.value, low=max(0.0, found.low), high=min(1.0, found.high))

    def majority(self) -> float:
        """Return the held-out accuracy of always naming the class that is most frequent in training."""
        labels, hits = self.task.labels, 0
        for fold in np.unique(self.fold):
            trained = labels[(labels >= 0) & (self.fold != fold)]
            hits += int((labels[self.fold == fold] == np.bincount(trained).argmax()).sum())
        return hits / int((labels >= 0).sum())


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
    rows = np.flatnonzero(labels >= 0)
    shuffled = labels.copy()
    order = rows[np.argsort(question[rows], kind="stable")]
    drawn = rows[np.lexsort((draw.random(len(rows)), question[rows]))]
    shuffled[order] = labels[drawn]
    return shuffled


def assign_folds(question: Ints, folds: int, draw: np.random.Generator) -> Ints:
    """Return each row's fold; the rows of a question share one, and folds differ by at most one question."""
    codes, place = np.unique(question, return_inverse=True)
    return np.asarray(draw.permutation(len(codes))[place] % min(folds, len(codes)))


def cross_validate(rows: Floats, question: Ints, tasks: list[Task], folds: int, c: float, seed: int) -> list[Held]:
    """Train and score all tasks at all sites together: each fold, its control with shuffled labels, and all rows.

    The control is that of Hewitt & Liang 2019 (arXiv:1909.03368): what the same probe reaches on labels that the
    activations can't know. Here these are the labels of each question in another order.

    Args:
        rows: Features, `[sites, n, width]`.
        question: The question of each row, `[n]`; at least two.
        tasks: The tasks; those with more than two classes have equally many, and come first. A task that uses few of
            the rows is better fitted by itself.
        folds: How many; at most one a question.
        c: The inverse of the penalty's strength, as in scikit-learn.
        seed: Of the folds and the shuffling.
    """
    draw = np.random.default_rng(seed)
    fold = assign_folds(question, folds, draw)
    count = int(fold.max()) + 1
    shuffled = [shuffle_within(task.labels, question, draw) for task in tasks]
    masks, mask_of, labels = [], [], []
    for number, (task, wrong) in enumerate(zip(tasks, shuffled, strict=True)):
        within = task.labels >= 0
        masks += [within & (fold != other) for other in range(count)] + [within]
        first = number * (count + 1)
        mask_of += [*range(first, first + count)] * 2 + [first + count]
        labels += [task.labels] * count + [wrong] * count + [task.labels]
    per_task = 2 * count + 1
    several = sum(len(task.classes) > 2 for task in tasks) * per_task
    known = torch.from_numpy(np.maximum(np.stack(labels), 0))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problems = Problems(
        masks=torch.from_numpy(np.stack(masks)).float().to(device),
        mask_of=torch.tensor(mask_of, device=device),
        multinomial=known[:several].to(device),
        binary=known[several:].to(device),
        classes=max(len(task.classes) for task in tasks) if several else 1,
        c=c,
    )
    fits = logistic.fit(torch.from_numpy(rows).to(device), problems)
    return [
        _held(fits, problems, number, task, wrong, fold, question)
        for number, (task, wrong) in enumerate(zip(tasks, shuffled, strict=True))
    ]


def _held(fits: Fits, problems: Problems, number: int, task: Task, shuffled: Ints, fold: Ints, question: Ints) -> Held:
    count = int(fold.max()) + 1
    per_task, several = 2 * count + 1, len(problems.multinomial)

    def own(columns: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return this task's fits, `[sites, fits, classes (1), …]`."""
        many, single = problems.split(columns)
        first = number * per_task
        of_all = many if len(task.classes) > 2 else single.unsqueeze(2)
        start = first if len(task.classes) > 2 else first - several
        found: npt.NDArray[np.float32] = of_all[:, start : start + per_task].cpu().numpy()
        return found

    logits, at = own(fits.logits), fold[None, None, None, :]
    return Held(
        task=task,
        shuffled_labels=shuffled,
        fold=fold,
        question=question,
        logits=np.take_along_axis(logits[:, :count], at, axis=1)[:, 0],
        shuffled=np.take_along_axis(logits[:, count : 2 * count], at, axis=1)[:, 0],
        weights=own(fits.weights)[:, -1],
        bias=own(fits.bias)[:, -1],
    )
