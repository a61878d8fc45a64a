"""What the answers say: each variant by itself, and each against the baselines, pair by pair."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from emopfx.analysis import inference
from emopfx.analysis.answers import Answers
from emopfx.analysis.design import SEED, baselines
from emopfx.analysis.inference import Floats
from emopfx.analysis.parts import Part
from emopfx.analysis.schema import Comparison, Effect, Sections, Statistics, Summary

# Names in the report, and the columns that they are means of.
MEASURES = {"accuracy": "correct", "format": "format", "completion_tokens": "completion_tokens"}
ALPHA = 0.05
POWER = 0.8
RESAMPLES = 10_000


def part(answers: Answers) -> Part:
    """Return the part of the analysis that counts and tests."""
    return Part("statistics", answers.digest(), lambda folder: Sections(statistics=statistics(answers)))


def statistics(answers: Answers, resamples: int = RESAMPLES) -> Statistics:
    """Count and test everything.

    Args:
        answers: The answers.
        resamples: How many bootstrap resamples, and how many sign flips.
    """
    # A row per answer; one per question and repeat once it is pivoted, with a column per variant.
    table = pd.DataFrame([answer._replace(breadcrumb=None) for answer in answers.finished])
    uncut = table[~table["truncated"]]
    return Statistics(
        seed=SEED,
        resamples=resamples,
        confidence=inference.CONFIDENCE,
        alpha=ALPHA,
        power=POWER,
        variants=_summaries(table, answers),
        comparisons=compare(table, answers.variants, resamples),
        without_truncated=compare(uncut, answers.variants, resamples) if len(uncut) < len(table) else None,
    )


def _summaries(table: Any, answers: Answers) -> list[Summary]:
    expected = Counter(key.split("/")[0] for key in answers.expected)
    return [_summary(name, table[table["variant"] == name], expected[name]) for name in answers.variants]


def _summary(variant: str, own: Any, expected: int) -> Summary:
    clusters = own["question"].factorize()[0]
    accuracy, form, tokens = (own[column].to_numpy(dtype=float) for column in MEASURES.values())
    return Summary(
        variant=variant,
        n=len(own),
        expected=expected,
        questions=own["question"].nunique(),
        truncated=int(own["truncated"].sum()),
        correct=int(accuracy.sum()),
        accuracy=inference.clustered_share(accuracy, clusters) if len(own) else None,
        format=inference.clustered_share(form, clusters) if len(own) else None,
        completion_tokens=inference.clustered_mean(tokens, clusters) if len(own) else None,
    )


@dataclass(frozen=True)
class _Contrast:
    """A variant and a baseline with pairs in common; `pairs` has the variant's answers less the baseline's."""

    variant: str
    baseline: str
    pairs: Any

    def questions(self, column: str, order: Any) -> Floats:
        """The mean difference of each question, NaN for one without a pair."""
        means: Floats = self.pairs[column].groupby(level="question").mean().reindex(order).to_numpy()
        return means

    def changed(self, sign: int) -> list[str]:
        """The pairs in which the variant's answer is right and the baseline's wrong (1), or the other way (-1)."""
        return [_name(*pair) for pair in self.pairs.index[self.pairs["correct"] == sign]]


def _name(question: str, repeat: int) -> str:
    return question if repeat == 1 else f"{question}/r{repeat}"


def compare(table: Any, variants: list[str], resamples: int) -> list[Comparison]:
    """Compare every variant with every baseline, over the questions and repeats that both answered.

    Args:
        table: A row per answer (a data frame with the columns of `Answer`).
        variants: The variants, of which some are baselines (see `design.baselines`).
        resamples: How many bootstrap resamples, and how many sign flips.
    """
    contrasts = _contrasts(table, variants)
    if not contrasts:
        return []
    effects = {name: _effects(contrasts, column, resamples) for name, column in MEASURES.items()}
    return [
        Comparison(
            variant=contrast.variant,
            baseline=contrast.baseline,
            pairs=len(contrast.pairs),
            questions=contrast.pairs.index.get_level_values("question").nunique(),
            **{name: effects[name][number] for name in MEASURES},
            right_to_wrong=contrast.changed(-1),
            wrong_to_right=contrast.changed(1),
        )
        for number, contrast in enumerate(contrasts)
    ]


def _contrasts(table: Any, variants: list[str]) -> list[_Contrast]:
    bases = baselines(variants)
    columns = list(MEASURES.values())
    groups = {
        name: group.set_index(["question", "repeat"])[columns].astype(float) for name, group in table.groupby("variant")
    }
    contrasts = []
    for number, baseline in enumerate(bases):
        for variant in variants:
            # Control against neutral is neutral against control.
            if variant not in bases[: number + 1] and {variant, baseline} <= groups.keys():
                pairs = (groups[variant] - groups[baseline]).dropna()
                if len(pairs):
                    contrasts.append(_Contrast(variant, baseline, pairs))
    return contrasts


def _effects(contrasts: list[_Contrast], column: str, resamples: int) -> list[Effect]:
    order = pd.Index(sorted({question for contrast in contrasts for question, _ in contrast.pairs.index}))
    differences = np.stack([contrast.questions(column, order) for contrast in contrasts])
    share = column != "completion_tokens"
    intervals = _intervals(differences, resamples, share=share)
    single = all(contrast.pairs.index.get_level_values("repeat").max() == 1 for contrast in contrasts)
    exact = single and share
    if exact:
        p = np.array([inference.mcnemar(int((row == -1).sum()), int((row == 1).sum())) for row in differences])
    else:
        p = inference.sign_flip(differences, resamples, SEED)
    families = np.array([contrast.baseline for contrast in contrasts])
    adjusted = np.empty_like(p)
    for baseline in np.unique(families):
        adjusted[families == baseline] = inference.holm(p[families == baseline])
    effects = []
    for number, row in enumerate(differences):
        strictest = ALPHA / np.sum(families == families[number])
        effects.append(
            Effect(
                difference=float(np.nanmean(row)),
                low=intervals[number][0],
                high=intervals[number][1],
                test="mcnemar" if exact else "sign-flip",
                p=float(p[number]),
                p_holm=float(adjusted[number]),
                detectable=_detectable(row, strictest, exact=exact, share=share),
            )
        )
    return effects


def _detectable(differences: Floats, alpha: float, *, exact: bool, share: bool) -> float | None:
    if exact:
        given = differences[~np.isnan(differences)]
        return inference.detectable_share(len(given), int((given != 0).sum()), alpha, POWER)
    found = inference.detectable_mean(differences, alpha, POWER)
    # No difference of shares is larger.
    return None if share and found is not None and found > 1 else found


def _intervals(differences: Floats, resamples: int, *, share: bool) -> list[tuple[float, float] | tuple[None, None]]:
    """Return the interval of each row's mean, none where nothing can be said."""
    found: list[tuple[float, float] | tuple[None, None]] = []
    for row, low, high in zip(differences, *inference.bootstrap(differences, resamples, SEED), strict=True):
        questions = int((~np.isnan(row)).sum())
        if not np.isnan(low):
            found.append((float(low), float(high)))
        elif share and questions > 1:
            found.append(inference.unanimous(float(np.nanmean(row)), questions))
        else:
            found.append((None, None))
    return found
