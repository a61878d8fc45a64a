"""Sparse autoencoders of chosen places, and the features in them that differ between variants."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from emopfx.analysis import sae as topk
from emopfx.analysis.activations import Activations, Site, Source, having, open_answers
from emopfx.analysis.answers import Answer, Answers
from emopfx.analysis.inference import CONFIDENCE
from emopfx.analysis.parts import Part
from emopfx.analysis.sae import TopKSae
from emopfx.analysis.schema import Estimate, Feature, Sae, Saes
from emopfx.config import Sae as Settings
from emopfx.errors import InputError
from emopfx.hashing import Json
from emopfx.progress import Progress, say
from emopfx.record import Record

Floats = npt.NDArray[np.float64]

CONTROL = "control"
SEED = 20260419
BATCH_TOKENS = 2048
# Rows of this many bytes are mixed with each other.
POOL_BYTES = 1 << 28
HELD_OUT = 0.1
# A difference that is zero for almost all questions has no t distribution.
LEAST_QUESTIONS = 5
SHOWN_FEATURES = 20


def part(record: Record, answers: Answers, source: Source) -> Part | None:
    """Return the part of the analysis that trains autoencoders, None if no activations were captured."""
    settings = Settings.model_validate(record.content["config"]["analysis"]["sae"])
    captured = [answer for answer in answers.finished if answer.breadcrumb]
    if not captured:
        say("analyze: there are no activations for an SAE")
        return None
    inputs: Json = {"answers": answers.digest(), "settings": settings.model_dump(), "here": having(source, captured)}
    about = {"model_name": record.content["config"]["model"]["name"], "experiment": record.layout.name}
    return Part("sae", inputs, lambda folder: train_all(source, captured, settings, folder, about))


def train_all(source: Source, answers: list[Answer], settings: Settings, folder: Path, about: dict[str, Any]) -> Saes:
    """Train an autoencoder for each chosen place, save it under its name, and compare variants in it.

    Args:
        source: Where the activations are.
        answers: Answers that have activations.
        settings: Which places, and how to train.
        folder: Gets a folder per place.
        about: Provenance, for the metadata of the files.

    Raises:
        InputError: If a chosen place was not captured.
    """
    opened = open_answers(source, answers)
    sites = _chosen(opened, settings)
    draw = np.random.default_rng(SEED)
    questions = sorted({answer.question for answer in answers})
    held = set(draw.permutation(questions)[: max(1, int(HELD_OUT * len(questions)))].tolist())
    trained_on = [answer.key for answer in answers if answer.question not in held]
    found = []
    with Progress("sae", len(sites)) as progress:
        for site in sites:
            batches = _batches(opened, site, trained_on, draw)
            width = settings.expansion * opened.width(site)
            sae = topk.train(batches, width, settings.k, settings.tokens, SEED)
            topk.save(sae, folder / site.name, site.name, about)
            found.append(_describe(sae, opened, site, answers, held, settings.tokens))
            progress.advance()
    return Saes(saes=found)


def _chosen(opened: Activations, settings: Settings) -> list[Site]:
    captured = set(opened.sites)
    hook_points = settings.hook_points or sorted({site.hook_point for site in captured})
    chosen = [Site(layer, hook_point) for layer in settings.layers for hook_point in hook_points]
    if lacking := [site.name for site in chosen if site not in captured]:
        raise InputError(f"analysis.sae: {lacking[0]} was not captured")
    return chosen


def _batches(opened: Activations, site: Site, keys: list[str], draw: np.random.Generator) -> Iterator[Tensor]:
    """Yield batches of tokens' rows without end, mixed over samples."""
    room = max(2 * BATCH_TOKENS, POOL_BYTES // (4 * opened.width(site)))
    while True:
        pool: list[npt.NDArray[np.float32]] = []
        held = total = 0
        for _, rows in opened.rows(site, "all", draw.permutation(keys).tolist()):
            pool.append(rows)
            held += len(rows)
            total += len(rows)
            if held >= room:
                mixed = draw.permutation(np.concatenate(pool))
                yield from _split(mixed[: len(mixed) // 2])
                pool = [mixed[len(mixed) // 2 :]]
                held = len(pool[0])
        if not total:
            raise InputError(f"there are no rows of {site.name} to train an SAE on")
        yield from _split(draw.permutation(np.concatenate(pool)))


def _split(rows: npt.NDArray[np.float32]) -> Iterator[Tensor]:
    return (torch.from_numpy(rows[start : start + BATCH_TOKENS]) for start in range(0, len(rows), BATCH_TOKENS))


@dataclass
class _Differences:
    """Sums over questions of each feature's difference between a variant and control."""

    count: int = 0
    total: Floats | float = 0.0
    square: Floats | float = 0.0
    nonzero: Floats | float = 0.0

    def add(self, difference: Floats) -> None:
        self.count += 1
        self.total = self.total + difference
        self.square = self.square + difference**2
        self.nonzero = self.nonzero + (difference != 0)


@dataclass
class _Seen:
    """What is counted while the tokens of all samples pass through an autoencoder."""

    tokens: int = 0
    active: Floats | float = 0.0
    held_active: Floats | float = 0.0
    held_tokens: int = 0
    held_sum: Floats | float = 0.0
    held_square: float = 0.0
    held_error: float = 0.0
    differences: dict[str, _Differences] = field(default_factory=lambda: defaultdict(_Differences))

    def rows(self, sae: TopKSae, rows: npt.NDArray[np.float32], *, held: bool) -> Floats:
        """Count the tokens of one sample, and return their features, `[tokens, width]`."""
        x = torch.from_numpy(rows)
        with torch.no_grad():
            features = sae.encode(x)
            error = (x - sae.decode(features)).square().sum() if held else torch.zeros(())
        values: Floats = features.numpy().astype(np.float64)
        self.tokens += len(rows)
        self.active = self.active + (values > 0).sum(axis=0)
        if held:
            self.held_active = self.held_active + (values > 0).sum(axis=0)
            self.held_tokens += len(rows)
            self.held_sum = self.held_sum + rows.sum(axis=0, dtype=np.float64)
            self.held_square += float(np.square(rows, dtype=np.float64).sum())
            self.held_error += float(error)
        return values

    def explained(self) -> float:
        """Return the share of the held-out tokens' variance that is explained."""
        spread = self.held_square - float(np.square(self.held_sum).sum()) / max(1, self.held_tokens)
        return 1 - self.held_error / spread if spread > 0 else 0.0


def _describe(
    sae: TopKSae, opened: Activations, site: Site, answers: list[Answer], held: set[str], trained: int
) -> Sae:
    """Pass all samples through an autoencoder, question by question."""
    ordered = {answer.key: answer for answer in sorted(answers, key=lambda answer: answer.question)}
    seen, means, question = _Seen(), defaultdict[str, list[Floats]](list), ""
    for key, rows in opened.rows(site, "all", ordered):
        answer = ordered[key]
        if answer.question != question:
            _compare(means, seen)
            means, question = defaultdict(list), answer.question
        features = seen.rows(sae, rows, held=answer.question in held)
        generated = opened.count(key, "generated")
        if generated:
            means[answer.variant].append(features[len(features) - generated :].mean(axis=0))
    _compare(means, seen)
    return Sae(
        layer=site.layer,
        hook_point=site.hook_point,
        width=len(sae.b_enc),
        k=sae.k,
        tokens=trained,
        explained_variance=seen.explained(),
        dead=int((np.asarray(seen.held_active) == 0).sum()),
        features=_differing(seen),
    )


def _compare(means: dict[str, list[Floats]], seen: _Seen) -> None:
    """Add one question's differences to control, of features' means over the generated tokens."""
    if CONTROL not in means:
        return
    control = np.mean(means[CONTROL], axis=0)
    for variant, own in means.items():
        if variant != CONTROL:
            seen.differences[variant].add(np.mean(own, axis=0) - control)


def _differing(seen: _Seen) -> list[Feature]:
    """Return the features that differ most, by a paired t test over questions and Benjamini and Hochberg's method."""
    tested: list[tuple[str, int, float, float, float]] = []
    for variant, sums in seen.differences.items():
        n = sums.count
        mean = np.asarray(sums.total) / n
        variance = (np.asarray(sums.square) / n - mean**2) * n / max(1, n - 1)
        for index in np.flatnonzero((np.asarray(sums.nonzero) >= LEAST_QUESTIONS) & (variance > 1e-18)):
            error = float(np.sqrt(variance[index] / n))
            p = 2 * stats.t.sf(abs(mean[index]) / error, n - 1)
            half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error
            tested.append((variant, int(index), float(mean[index]), float(half), float(p)))
    if not tested:
        return []
    adjusted = stats.false_discovery_control([p for *_, p in tested])
    ranked = sorted(zip(tested, adjusted, strict=True), key=lambda item: item[0][-1])[:SHOWN_FEATURES]
    return [
        Feature(
            feature=index,
            variant=variant,
            difference=Estimate(value=mean, low=mean - half, high=mean + half),
            q=float(q),
            active=float(np.asarray(seen.active)[index] / seen.tokens),
        )
        for (variant, index, mean, half, _), q in ranked
    ]
