"""Linear probes of every layer and hook point: where in the network a variant, or a right answer, can be read off."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from emopfx.analysis import features, vectors
from emopfx.analysis.activation_file import Floats, Site
from emopfx.analysis.activations import Activations
from emopfx.analysis.answers import Answer
from emopfx.analysis.captured import Captured
from emopfx.analysis.crossvalidation import Held, assign_folds, cross_validate, features_of
from emopfx.analysis.curvature import Curvature
from emopfx.analysis.design import SEED
from emopfx.analysis.features import FeatureName
from emopfx.analysis.parts import Part
from emopfx.analysis.projections import Direction, write_projections
from emopfx.analysis.schema import Probe, Probes, ProbeTask, Sections, Skipped
from emopfx.analysis.tasks import CORRECT, centre, correct_task, variant_tasks
from emopfx.config import Probes as Settings
from emopfx.progress import Progress
from emopfx.record import Record

Key = tuple[FeatureName, str]


def part(record: Record, captured: Captured) -> Part:
    """Return the part of the analysis that probes activations."""
    settings = Settings.model_validate(record.content["config"]["analysis"]["probes"])
    about = {"experiment": record.layout.name, "config_hash": record.hash, "model": record.content["config"]["model"]}

    def compute(folder: Path) -> Sections:
        found = probe(captured.opened, captured.answers, captured.baseline, settings, folder, about)
        return Sections(probes=found, activations=captured.files())

    return Part("probes", {"captured": captured.identity, "settings": settings.model_dump()}, compute)


def probe(
    opened: Activations, answers: list[Answer], base: str, settings: Settings, folder: Path, about: dict[str, Any]
) -> Probes:
    """Probe every place, and write the directions found to `vectors/` and tokens' projections on the best ones.

    Only one layer's features are in memory at a time.

    Args:
        opened: The activations.
        answers: The answers they belong to.
        base: The variant that the others are told from.
        settings: How to probe.
        folder: Gets the files.
        about: Provenance, for the metadata of the files.
    """
    by_key = {answer.key: answer for answer in answers}
    findings = _Findings(settings, base)
    having = {name: keys for name, keys in features.available(opened).items() if name in settings.features}
    for feature, keys in having.items():
        if not keys:
            findings.skip("all", feature, "the tokens that it needs were not captured, or can't be read")
    having = {name: keys for name, keys in having.items() if keys}
    with Progress("probes", len(opened.sites)) as progress:
        for site, found in _by_site(opened, having) if having else ():
            for feature, rows in found.items():
                whole = np.flatnonzero(~np.isnan(rows).any(axis=1))
                if not len(whole):
                    findings.skip("all", feature, f"no answer can be read at {site.name}")
                    continue
                findings.add(site, feature, [by_key[having[feature][row]] for row in whole], rows[whole])
            progress.advance()
    findings.save(folder / "vectors", about)
    return Probes(
        folds=settings.folds,
        c=settings.c,
        tasks=list(findings.tasks.values()),
        skipped=findings.skipped,
        projections=write_projections(folder / "projections.jsonl", opened, findings.best()),
    )


def _by_site(
    opened: Activations, having: dict[FeatureName, list[str]]
) -> Iterator[tuple[Site, dict[FeatureName, Floats]]]:
    """Yield each place's features, read layer by layer."""
    for _, sites in groupby(opened.sites, key=lambda site: site.layer):
        yield from features.read(opened, list(sites), having).items()


@dataclass
class _Findings:
    """What is found place by place: scores for the report, directions for the files."""

    settings: Settings
    base: str
    tasks: dict[Key, ProbeTask] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    directions: dict[Key, dict[Site, Floats]] = field(default_factory=lambda: defaultdict(dict))
    about: dict[Key, dict[str, Any]] = field(default_factory=dict)
    biases: dict[Key, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def skip(self, task: str, feature: FeatureName, reason: str) -> None:
        entry = Skipped(name=task, feature=feature, reason=reason)
        if entry not in self.skipped:
            self.skipped.append(entry)

    def add(self, site: Site, feature: FeatureName, panel: list[Answer], rows: Floats) -> None:
        """Probe one feature, `[answers, width]`, at a place."""
        question = np.unique([answer.question for answer in panel], return_inverse=True)[1]
        variant = np.unique([answer.variant for answer in panel], return_inverse=True)[1]
        tasks = variant_tasks([answer.variant for answer in panel], self.base, question)
        whole = features_of(rows)
        curvature = Curvature(whole, self.settings.c)
        for task in [*tasks, correct_task([answer.correct for answer in panel], question)]:
            own, codes = rows[task.rows], np.unique(question[task.rows], return_inverse=True)[1]
            questions = len(np.unique(codes))
            # Where a variant's mean is taken out of each fold, a fold of one question would have nothing left.
            least = 2 if task.name == CORRECT else 1
            if questions < 2 * least:
                number = {2: "two", 4: "four"}[2 * least]
                reason = f"fewer than {number} questions have answers of {_either(task.classes)}"
                self.skip(task.name, feature, reason)
                continue
            fold = assign_folds(codes, min(self.settings.folds, questions // least), SEED)
            if task.name == CORRECT:
                own = centre(own, codes, variant[task.rows], fold)
                part = features_of(own)
            else:
                part = whole.part(task.rows)
            held = cross_validate(part, codes, fold, task, self.settings.c, SEED, curvature)
            self._keep(site, feature, own, held)

    def _keep(self, site: Site, feature: FeatureName, rows: Floats, held: Held) -> None:
        """Keep scores and directions of one task: weights, and for two classes the difference of their means."""
        task = held.task
        entry = ProbeTask(
            name=task.name,
            feature=feature,
            classes=list(task.classes),
            samples=len(task.labels),
            questions=len(np.unique(held.question)),
            majority=held.majority(),
            probes=[],
        )
        self.tasks.setdefault((feature, task.name), entry).probes.append(_probe(held, site))
        stem = task.name.replace(" ", "-")
        names = [stem] if len(task.classes) == 2 else [f"{stem}-{name}" for name in task.classes]
        about = {"task": task.name, "feature": feature, "classes": list(task.classes)}
        for number, name in enumerate(names):
            key = feature, f"{name}-probe"
            self.directions[key][site] = held.weights[number]
            self.biases[key][site.name] = float(held.bias[number])
            towards = task.classes[1] if len(task.classes) == 2 else task.classes[number]
            self.about[key] = {
                **about,
                "what": f"weights of a probe, in logits of {towards} per unit of activation",
                "bias": self.biases[key],
            }
        if len(task.classes) == 2:
            key = feature, f"{stem}-mean"
            means = [rows[task.labels == label].mean(axis=0) for label in (0, 1)]
            self.directions[key][site] = means[1] - means[0]
            what = f"mean of {task.classes[1]} less mean of {task.classes[0]}, in units of activation"
            self.about[key] = {**about, "what": what}

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write every direction, a file for each feature, task and kind."""
        for key, own in self.directions.items():
            feature, name = key
            vectors.save(folder / feature / f"{name}.safetensors", own, {**about, **self.about[key]})

    def best(self) -> dict[str, Direction]:
        """Return, for each task of two classes, the probe that tells them apart best."""
        found: dict[str, tuple[float, Direction]] = {}
        for (feature, name), task in self.tasks.items():
            if len(task.classes) > 2:
                continue
            top = max(task.probes, key=lambda probe: probe.auc.value)
            site, stem = Site(top.layer, top.hook_point), name.replace(" ", "-")
            if name not in found or top.auc.value > found[name][0]:
                found[name] = (top.auc.value, Direction(site, self.directions[feature, f"{stem}-probe"][site]))
        ranked = sorted(found.items(), key=lambda item: -item[1][0])
        return {f"{name} at {direction.site.name}": direction for name, (_, direction) in ranked}


def _probe(held: Held, site: Site) -> Probe:
    accuracy, shuffled = held.accuracy(), held.accuracy(shuffled=True)
    return Probe(
        layer=site.layer,
        hook_point=site.hook_point,
        accuracy=accuracy,
        auc=held.auc(),
        shuffled=shuffled,
        selectivity=accuracy.value - shuffled.value,
    )


def _either(classes: tuple[str, ...]) -> str:
    return " and ".join(classes) if len(classes) == 2 else "several of them"
