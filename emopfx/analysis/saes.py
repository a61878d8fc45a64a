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
from emopfx.analysis.activation_file import Site
from emopfx.analysis.activations import Activations
from emopfx.analysis.answers import Answer
from emopfx.analysis.captured import Captured
from emopfx.analysis.design import SEED
from emopfx.analysis.inference import CONFIDENCE
from emopfx.analysis.parts import Part
from emopfx.analysis.sae import TopKSae
from emopfx.analysis.schema import Estimate, Sae, SaeFeature, Saes, Sections
from emopfx.config import Sae as Settings
from emopfx.errors import InputError
from emopfx.progress import Progress
from emopfx.record import Record

Floats = npt.NDArray[np.float64]

# Rows of this many bytes are mixed with each other.
POOL_BYTES = 1 << 28
# Features of this many bytes are in memory at once.
CHUNK_BYTES = 1 << 26
HELD_OUT = 0.1
# A difference that is zero for almost all questions has no t distribution.
LEAST_QUESTIONS = 5
SHOWN_FEATURES = 20


def parts(record: Record, captured: Captured) -> Iterator[Part]:
    """Yield a part of the analysis for each chosen place: an autoencoder, and what differs in it."""
    config = record.content["config"]
    settings = Settings.model_validate(config["analysis"]["sae"])
    about = {"model_name": config["model"]["name"], "experiment": record.layout.name}
    training = settings.model_dump(exclude={"layers", "hook_points"})
    layers = record.content["model"]["num_layers"]
    for site in chosen(settings, config["capture"]["hook_points"], layers):

        def compute(folder: Path, site: Site = site) -> Sections:
            found = train_one(captured.opened, captured.answers, captured.baseline, site, settings, folder, about)
            return Sections(sae=found, activations=captured.files())

        yield Part(f"sae/{site.name}", {"captured": captured.identity, "training": training}, compute)


def chosen(settings: Settings, captured: list[str], num_layers: int) -> list[Site]:
    """Return the places that the settings name, given the hook points that are captured and the number of layers."""
    layers = dict.fromkeys(layer % num_layers for layer in settings.layers)
    return [Site(layer, hook_point) for layer in layers for hook_point in settings.hook_points or captured]


def train_one(
    opened: Activations,
    answers: list[Answer],
    base: str,
    site: Site,
    settings: Settings,
    folder: Path,
    about: dict[str, Any],
) -> Saes:
    """Train an autoencoder of a place, save it, and compare variants in it; say why if that can't be done.

    Args:
        opened: The activations.
        answers: The answers they belong to.
        base: The variant that the others are compared with.
        site: The place.
        settings: How to train.
        folder: Gets the files.
        about: Provenance, for their metadata.
    """
    try:
        held = _held_out(opened, answers, site)
        keys = [answer.key for answer in answers if answer.question not in held]
        sae = _train(opened, site, keys, settings)
    except InputError as error:
        return Saes(baseline=base, saes=[], skipped=[f"{site.name}: {error}"])
    topk.save(sae, folder, site.name, about)
    return Saes(baseline=base, saes=[_describe(sae, opened, site, answers, held, base, settings.tokens)], skipped=[])


def _held_out(opened: Activations, answers: list[Answer], site: Site) -> set[str]:
    """Return the questions that an autoencoder is not trained on."""
    if site not in opened.table:
        raise InputError("it was not captured, or can't be read")
    readable = set(opened.keys)
    questions = sorted({answer.question for answer in answers if answer.key in readable})
    if len(questions) < 2:
        raise InputError("fewer than two questions have activations")
    drawn = np.random.default_rng(SEED).permutation(questions)
    return set(drawn[: max(1, int(HELD_OUT * len(questions)))].tolist())


def _train(opened: Activations, site: Site, keys: list[str], settings: Settings) -> TopKSae:
    with Progress(f"sae {site.name}", settings.tokens) as progress:
        pools = _pools(opened, site, keys, progress)
        sae = topk.train(pools, settings.expansion * opened.width(site), settings.k, settings.tokens, SEED)
        progress.update(settings.tokens)
    return sae


def _pools(opened: Activations, site: Site, keys: list[str], progress: Progress) -> Iterator[Tensor]:
    """Yield tokens' rows without end, mixed over samples."""
    draw, room = np.random.default_rng(SEED), max(2 * topk.BATCH, POOL_BYTES // (4 * opened.width(site)))
    while True:
        pool: list[npt.NDArray[np.float32]] = []
        held = total = 0
        for _, rows in opened.rows(site, "all", keys=draw.permutation(keys).tolist()):
            pool.append(rows)
            held += len(rows)
            total += len(rows)
            if held >= room:
                mixed = draw.permutation(np.concatenate(pool))
                half = len(mixed) // 2
                yield torch.from_numpy(mixed[:half])
                progress.update(min(progress.total, progress.done + half))
                pool, held = [mixed[half:]], len(mixed) - half
        if not total:
            raise InputError("no rows can be read")
        yield torch.from_numpy(draw.permutation(np.concatenate(pool)))
        progress.update(min(progress.total, progress.done + held))


@dataclass
class _Differences:
    """Sums over questions of each feature's difference between a variant and the baseline."""

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

    width: int
    tokens: int = 0
    active: Floats | float = 0.0
    held_active: Floats | float = 0.0
    held_tokens: int = 0
    held_sum: Floats | float = 0.0
    held_square: float = 0.0
    held_error: float = 0.0
    differences: dict[str, _Differences] = field(default_factory=lambda: defaultdict(_Differences))

    def rows(self, sae: TopKSae, rows: npt.NDArray[np.float32], generated: int, *, held: bool) -> Floats:
        """Count the tokens of one sample, and return the sum of their features over its generated tokens, the last."""
        size = max(1, CHUNK_BYTES // (4 * self.width))
        total = np.zeros(self.width)
        for start in range(0, len(rows), size):
            chunk = torch.from_numpy(rows[start : start + size]).to(sae.b_enc.device)
            with torch.no_grad():
                features = sae.encode(chunk)
                error = float((chunk - sae.decode(features)).square().sum()) if held else 0.0
            active = (features > 0).sum(0).cpu().numpy()
            self.active = self.active + active
            first = max(0, len(rows) - generated - start)
            total += features[first:].sum(0, dtype=torch.float64).cpu().numpy()
            if held:
                self.held_active = self.held_active + active
                self.held_error += error
        self.tokens += len(rows)
        if held:
            self.held_tokens += len(rows)
            self.held_sum = self.held_sum + rows.sum(axis=0, dtype=np.float64)
            self.held_square += float(np.square(rows, dtype=np.float64).sum())
        return total

    def explained(self) -> float:
        """Return the share of the held-out tokens' variance that is explained."""
        spread = self.held_square - float(np.square(self.held_sum).sum()) / max(1, self.held_tokens)
        return 1 - self.held_error / spread if spread > 0 else 0.0


def _describe(
    sae: TopKSae, opened: Activations, site: Site, answers: list[Answer], held: set[str], base: str, trained: int
) -> Sae:
    """Pass all samples through an autoencoder, question by question."""
    ordered = {answer.key: answer for answer in sorted(answers, key=lambda answer: answer.question)}
    seen, means, question = _Seen(len(sae.b_enc)), defaultdict[str, list[Floats]](list), ""
    for key, rows in opened.rows(site, "all", keys=ordered):
        answer = ordered[key]
        if answer.question != question:
            _compare(means, base, seen)
            means, question = defaultdict(list), answer.question
        generated = opened.count(key, "generated")
        total = seen.rows(sae, rows, generated, held=answer.question in held)
        if generated:
            means[answer.variant].append(total / generated)
    _compare(means, base, seen)
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


def _compare(means: dict[str, list[Floats]], base: str, seen: _Seen) -> None:
    """Add one question's differences to the baseline, of features' means over the generated tokens."""
    if base not in means:
        return
    others = np.mean(means[base], axis=0)
    for variant, own in means.items():
        if variant != base:
            seen.differences[variant].add(np.mean(own, axis=0) - others)


def _differing(seen: _Seen) -> list[SaeFeature]:
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
        SaeFeature(
            feature=index,
            variant=variant,
            difference=Estimate(value=mean, low=mean - half, high=mean + half),
            q=float(q),
            active=float(np.asarray(seen.active)[index] / seen.tokens),
        )
        for (variant, index, mean, half, _), q in ranked
    ]
