"""Linear probes of every layer and hook point: where in the network a variant, or a right answer, can be read off."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emopfx.analysis import activations, features, vectors
from emopfx.analysis.activations import Activations, Site
from emopfx.analysis.answers import Answer, Answers
from emopfx.analysis.crossvalidation import Held, Task, cross_validate
from emopfx.analysis.features import Feature
from emopfx.analysis.parts import Part
from emopfx.analysis.projections import Direction, write_projections
from emopfx.analysis.schema import Probe, Probes, ProbeTask, Skipped
from emopfx.config import Probes as Settings
from emopfx.hashing import Json
from emopfx.progress import Progress, say
from emopfx.record import Record

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

CONTROL = "control"
CORRECT = "correct"
SEED = 20260419
# Features of so many places are in memory at once, in bytes.
BATCH_BYTES = 1 << 29


def part(record: Record, answers: Answers, source: activations.Source) -> Part | None:
    """Return the part of the analysis that probes activations, None if none were captured."""
    settings = Settings.model_validate(record.content["config"]["analysis"]["probes"])
    captured = [answer for answer in answers.finished if answer.breadcrumb]
    if not captured:
        say("analyze: there are no activations to probe")
        return None
    inputs: Json = {
        "answers": answers.digest(),
        "settings": settings.model_dump(),
        "here": activations.having(source, captured),
    }
    about = {"experiment": record.layout.name, "config_hash": record.hash, "model": record.content["config"]["model"]}
    return Part("probes", inputs, lambda folder: probe(source, captured, settings, folder, about))


def probe(
    source: activations.Source, answers: list[Answer], settings: Settings, folder: Path, about: dict[str, Any]
) -> Probes:
    """Probe every place, and write the directions found to `vectors/` and tokens' projections on the best ones.

    Args:
        source: Where the activations are.
        answers: Answers that have activations.
        settings: How to probe.
        folder: Gets the files.
        about: Provenance, for the metadata of the files.
    """
    by_key = {answer.key: answer for answer in answers}
    opened = activations.open_answers(source, answers)
    findings = _Findings(settings)
    having = {name: keys for name, keys in features.available(opened).items() if name in settings.features}
    for feature, keys in having.items():
        if not keys:
            findings.skip("all", feature, "the tokens that it needs were not captured")
    having = {name: keys for name, keys in having.items() if keys}
    with Progress("probes", len(opened.sites)) as progress:
        for sites in _batches(opened, having):
            read = []
            for site in sites:
                read.append(features.read(opened, site, having))
                progress.advance()
            for feature, keys in having.items():
                rows = np.stack([found[feature] for found in read])
                whole = np.flatnonzero(~np.isnan(rows).any(axis=(0, 2)))
                panel = [by_key[keys[row]] for row in whole]
                findings.add(sites, feature, panel, rows[:, whole])
    findings.save(folder / "vectors", about)
    projections = write_projections(folder / "projections.jsonl", opened, findings.best())
    return Probes(
        folds=settings.folds,
        c=settings.c,
        tasks=list(findings.tasks.values()),
        skipped=findings.skipped,
        unreadable=opened.problems,
        projections=projections,
    )


def _batches(opened: Activations, having: dict[Feature, list[str]]) -> Iterator[list[Site]]:
    """Yield sites of one width, as many at a time as there is memory for."""
    samples = sum(len(keys) for keys in having.values())
    for width, same in groupby(opened.sites, key=opened.width):
        sites, size = list(same), max(1, BATCH_BYTES // (4 * width * max(1, samples)))
        yield from (sites[start : start + size] for start in range(0, len(sites), size))


def variant_tasks(variants: list[str], question: Ints) -> list[Task]:
    """Return the tasks of telling variants apart: all of them, and each from control."""
    names, own = list(dict.fromkeys(variants)), np.array(variants)
    tasks = []
    if len(names) > 2:
        tasks.append(Task("variant", tuple(names), np.array([names.index(variant) for variant in variants])))
    for name in names if CONTROL in names else []:
        if name != CONTROL:
            labels = np.select([own == name, own == CONTROL], [1, 0], -1)
            tasks.append(Task(f"{name} vs {CONTROL}", (CONTROL, name), labels))
    return [Task(task.name, task.classes, _differing(task.labels, question)) for task in tasks]


def correct_task(correct: list[bool], question: Ints) -> Task:
    """Return the task of telling right answers from wrong ones to the same question."""
    return Task(CORRECT, ("wrong", "right"), _differing(np.array(correct, np.int64), question))


def _differing(labels: Ints, question: Ints) -> Ints:
    """Leave out the rows of questions that have one class only: they say nothing about a difference."""
    seen = [set(labels[(question == code) & (labels >= 0)]) for code in range(question.max() + 1)]
    differ = np.array([len(classes) > 1 for classes in seen])
    return np.where(differ[question], labels, -1)


def centre(rows: Floats, question: Ints) -> Floats:
    """Subtract each question's mean from its rows, `[sites, n, width]`, so that only differences within it remain."""
    order = np.argsort(question, kind="stable")
    starts = np.flatnonzero(np.diff(question[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    means = np.add.reduceat(rows[:, order], starts, axis=1) / counts[:, None]
    centred = np.empty_like(rows)
    centred[:, order] = rows[:, order] - np.repeat(means, counts, axis=1)
    return centred


@dataclass
class _Findings:
    """What is found batch by batch: scores for the report, directions for the files."""

    settings: Settings
    tasks: dict[tuple[Feature, str], ProbeTask] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    directions: dict[tuple[Feature, str], dict[Site, Floats]] = field(default_factory=lambda: defaultdict(dict))
    biases: dict[tuple[Feature, str], dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def skip(self, task: str, feature: Feature, reason: str) -> None:
        entry = Skipped(name=task, feature=feature, reason=reason)
        if entry not in self.skipped:
            self.skipped.append(entry)

    def add(self, sites: list[Site], feature: Feature, panel: list[Answer], rows: Floats) -> None:
        """Probe one feature, `[sites, answers, width]`, at some sites."""
        question = np.unique([answer.question for answer in panel], return_inverse=True)[1]
        tasks = variant_tasks([answer.variant for answer in panel], question)
        correct = correct_task([answer.correct for answer in panel], question)
        for task in self._possible([*tasks, correct], feature, question):
            used = task.labels >= 0
            own, codes = rows[:, used], np.unique(question[used], return_inverse=True)[1]
            restricted = Task(task.name, task.classes, task.labels[used])
            self._probe(sites, feature, centre(own, codes) if task is correct else own, codes, restricted)

    def _possible(self, tasks: list[Task], feature: Feature, question: Ints) -> list[Task]:
        possible = []
        for task in tasks:
            if len(np.unique(question[task.labels >= 0])) >= 2:
                possible.append(task)
            else:
                self.skip(task.name, feature, f"fewer than two questions have answers of {_either(task.classes)}")
        return possible

    def _probe(self, sites: list[Site], feature: Feature, rows: Floats, question: Ints, task: Task) -> None:
        (held,) = cross_validate(rows, question, [task], self.settings.folds, self.settings.c, SEED)
        entry = self.tasks.setdefault(
            (feature, task.name),
            ProbeTask(
                name=task.name,
                feature=feature,
                classes=list(task.classes),
                samples=len(task.labels),
                questions=len(np.unique(question)),
                majority=held.majority(),
                probes=[],
            ),
        )
        entry.probes += [_probe(held, index, site) for index, site in enumerate(sites)]
        self._keep(sites, feature, rows, held)

    def _keep(self, sites: list[Site], feature: Feature, rows: Floats, held: Held) -> None:
        """Keep the directions of one task: weights, and for two classes the difference of their means."""
        task = held.task
        stem = task.name.replace(" ", "-")
        names = [stem] if len(task.classes) == 2 else [f"{stem}-{name}" for name in task.classes]
        for index, site in enumerate(sites):
            for number, name in enumerate(names):
                self.directions[feature, f"{name}-probe"][site] = held.weights[index, number]
                self.biases[feature, f"{name}-probe"][site.name] = float(held.bias[index, number])
            if len(task.classes) == 2:
                means = [rows[index, task.labels == label].mean(axis=0) for label in (0, 1)]
                self.directions[feature, f"{stem}-mean"][site] = means[1] - means[0]

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write every direction, a file for each feature, task and kind."""
        for (feature, name), own in self.directions.items():
            probed = name.endswith("-probe")
            kind = "logits per unit of activation" if probed else "difference of class means, in units of activation"
            more = {"bias": self.biases[feature, name]} if probed else {}
            vectors.save(folder / feature / f"{name}.safetensors", own, {**about, "what": kind, **more})

    def best(self) -> dict[str, Direction]:
        """Return the probes that tell two classes apart best, the best place of up to three tasks."""
        found: dict[str, tuple[float, Direction]] = {}
        for (feature, name), task in self.tasks.items():
            if len(task.classes) > 2 or name == CORRECT:
                continue
            top = max(task.probes, key=lambda probe: probe.auc.value)
            site, stem = Site(top.layer, top.hook_point), name.replace(" ", "-")
            direction = Direction(site, self.directions[feature, f"{stem}-probe"][site])
            if name not in found or top.auc.value > found[name][0]:
                found[name] = (top.auc.value, direction)
        ranked = sorted(found.items(), key=lambda item: -item[1][0])[:3]
        return {f"{name} at {direction.site.name}": direction for name, (_, direction) in ranked}


def _probe(held: Held, index: int, site: Site) -> Probe:
    accuracy, shuffled = held.accuracy(index), held.accuracy(index, shuffled=True)
    return Probe(
        layer=site.layer,
        hook_point=site.hook_point,
        accuracy=accuracy,
        auc=held.auc(index),
        shuffled=shuffled,
        selectivity=accuracy.value - shuffled.value,
    )


def _either(classes: tuple[str, ...]) -> str:
    return " and ".join(classes) if len(classes) == 2 else "several of them"
