"""Intervals, tests and power for answers that are clustered by question and compared in pairs."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats
from statsmodels.regression.linear_model import OLS

from emopfx.analysis.schema import Estimate

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
# Resamples are drawn in blocks, so that memory does not grow with their number.
BLOCK = 500


def clustered_mean(values: Floats, clusters: npt.NDArray[np.int64]) -> Estimate:
    """Return the mean of values `[n]` with its t interval, given the cluster `[n]` of each.

    The standard error is the sandwich estimator that lets values of one cluster depend on each other in any way
    (Liang and Zeger 1986, Biometrika 73:13-22), with as many degrees of freedom as clusters, less one.
    """
    mean, count = float(values.mean()), len(np.unique(clusters))
    if count < 2:
        return Estimate(value=mean, low=None, high=None)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * _standard_error(values, clusters)
    return Estimate(value=mean, low=mean - half, high=mean + half)


def clustered_share(hits: Floats, clusters: npt.NDArray[np.int64]) -> Estimate:
    """Return the share of hits (0 or 1, `[n]`) with its interval, given the cluster `[n]` of each.

    This is Wilson's interval for the effective number of values: n divided by the design effect, the ratio of the
    clustered variance to that of independent values, and corrected for the degrees of freedom (Korn and Graubard
    1998, Survey Methodology 24:193-201; Dean and Pagano 2015, J. Surv. Stat. Methodol. 3:484-503). With one value a
    cluster it is Wilson's interval itself. If all values are the same, each cluster counts as one value.
    """
    n, count, share = len(hits), len(np.unique(clusters)), float(hits.mean())
    if count < 2:
        return Estimate(value=share, low=None, high=None)
    effective = float(n)
    if count < n:
        error = _standard_error(hits, clusters)
        # Where all clusters have the same share, values of a cluster differ more than independent ones would.
        worth = count if share in (0, 1) else share * (1 - share) / error**2 if error > 0 else n
        t, z = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1), stats.norm.ppf((1 + CONFIDENCE) / 2)
        effective = min(worth, n) * (z / t) ** 2
    low, high = _wilson(share, effective)
    return Estimate(value=share, low=low, high=high)


def _standard_error(values: Floats, clusters: npt.NDArray[np.int64]) -> float:
    fit = OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    return float(fit.bse[0])


def _wilson(share: float, n: float) -> tuple[float, float]:
    z = stats.norm.ppf((1 + CONFIDENCE) / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At the ends the formula is exact but for rounding.
    return (0.0 if share == 0 else float(centre - half)), (1.0 if share == 1 else float(centre + half))


def unanimous(difference: float, questions: int) -> tuple[float, float]:
    """Return the interval of a mean difference of shares that is the same in all questions.

    If more than 1 - 0.05^(1/n) of all questions differed otherwise, one of n would have shown it with 95 % probability
    (the one-sided interval of Clopper and Pearson 1934, Biometrika 26:404-413; about 3/n). At worst they differ by -1,
    or by 1.
    """
    others = 1 - (1 - CONFIDENCE) ** (1 / questions)
    return difference - others * (difference + 1), difference + others * (1 - difference)


def bootstrap(differences: Floats, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Return the ends `[rows]` of the interval of each row's mean, by resampling the columns.

    All rows see the same resamples. The percentiles are moved outwards as a t interval's ends are, since plain ones
    are too narrow for few columns (the expanded percentile interval, Hesterberg 2015, Am. Stat. 69:371-386).

    Args:
        differences: A row per comparison and a column per question, `[rows, questions]`; NaN where there is none.
        resamples: How many.
        seed: Seed of the resampling.

    Returns:
        Lower and upper ends; NaN for a row whose differences are all the same, of which resampling learns nothing.
    """
    given = ~np.isnan(differences)
    values, weights = np.where(given, differences, 0.0).T, given.astype(float).T
    means = []
    for counts in _draws(differences.shape[1], resamples, seed, flips=False):
        with np.errstate(invalid="ignore"):
            means.append((counts @ values) / (counts @ weights))
    drawn, n = np.concatenate(means), given.sum(axis=1)
    low, high = np.full(len(differences), np.nan), np.full(len(differences), np.nan)
    for row in np.flatnonzero(n > 1):
        if np.ptp(differences[row, given[row]]) > 0:
            tail = stats.norm.cdf(np.sqrt(n[row] / (n[row] - 1)) * stats.t.ppf((1 - CONFIDENCE) / 2, n[row] - 1))
            low[row], high[row] = np.nanquantile(drawn[:, row], [tail, 1 - tail])
    return low, high


def sign_flip(differences: Floats, resamples: int, seed: int) -> Floats:
    """Return the two-sided p `[rows]` of each row's mean difference, by flipping signs of columns at random.

    If a variant changes nothing, each question's difference is as likely as its opposite (Fisher 1935). The observed
    signs count as one of the draws, which keeps the test exact (Phipson and Smyth 2010, SAGMB 9:39).

    Args:
        differences: A row per comparison and a column per question, `[rows, questions]`; NaN where there is none.
        resamples: How many draws.
        seed: Seed of the draws.
    """
    values = np.nan_to_num(differences)
    observed = np.abs(values.sum(axis=1))
    # Sums that are equal but for rounding are equal.
    enough = observed - 1e-9 * np.abs(values).sum(axis=1)
    reached = np.zeros(len(values))
    for signs in _draws(values.shape[1], resamples, seed, flips=True):
        reached += (np.abs(signs @ values.T) >= enough).sum(axis=0)
    return np.asarray((1 + reached) / (1 + resamples))


def _draws(columns: int, resamples: int, seed: int, *, flips: bool) -> Iterator[Floats]:
    """Yield blocks `[up to BLOCK, columns]`: signs, or how often each column is drawn into a resample."""
    draw = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - start)
        if flips:
            yield draw.choice(np.array([-1.0, 1.0]), (rows, columns))
        else:
            yield draw.multinomial(columns, np.full(columns, 1 / columns), rows).astype(float)


def mcnemar(losses: int, wins: int) -> float:
    """Return the two-sided p of the exact McNemar test, given the pairs that changed in each direction.

    McNemar 1947, Psychometrika 12:153-157: of the pairs that changed, either direction is equally likely.
    """
    changed = losses + wins
    return float(stats.binomtest(losses, changed, 0.5).pvalue) if changed else 1.0


def mcnemar_power(difference: float, changed: float, pairs: int, alpha: float) -> float:
    """Return the power of the exact McNemar test, as the mean over how many pairs change.

    Args:
        difference: Share of pairs changed for the better, less that for the worse.
        changed: Share of pairs that change at all.
        pairs: How many there are.
        alpha: Level of the test.
    """
    discordant = np.arange(pairs + 1)
    quantile = stats.binom.ppf(alpha / 2, discordant, 0.5)
    critical = np.where(stats.binom.cdf(quantile, discordant, 0.5) > alpha / 2, quantile - 1, quantile)
    better = (1 + difference / changed) / 2
    rejected = stats.binom.cdf(critical, discordant, better) + stats.binom.cdf(critical, discordant, 1 - better)
    return float(np.sum(stats.binom.pmf(discordant, pairs, changed) * rejected))


def holm(p: Floats) -> Floats:
    """Return p values `[tests]` adjusted for being several (Holm 1979, Scand. J. Stat. 6:65-70)."""
    # statsmodels' multipletests gives the same, but collects garbage on every call.
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


@cache
def detectable_share(pairs: int, changed: int, alpha: float, power: float) -> float | None:
    """Return the smallest difference that the exact McNemar test finds with this power, None if it finds none.

    As many pairs change as did; a difference larger than that takes all changes in one direction.
    """
    share = changed / pairs

    def lacking(difference: float) -> float:
        return mcnemar_power(difference, max(share, difference), pairs, alpha) - power

    return float(optimize.brentq(lacking, 1e-6, 1.0, xtol=1e-4)) if lacking(1.0) > 0 else None


def detectable_mean(differences: Floats, alpha: float, power: float) -> float | None:
    """Return the smallest mean difference that sign flips find with this power, None if nothing differs.

    With the differences' own spread, as for a paired t test (Cohen 1988, chapter 2), and a correction for continuity:
    sums that tie with what was seen count against it, so that the sum must be larger by half the step between sums,
    which is the smallest difference of a question.
    """
    values = differences[~np.isnan(differences)]
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    freedom = len(values) - 1
    distance = stats.t.ppf(1 - alpha / 2, freedom) + stats.t.ppf(power, freedom)
    step = np.abs(values[values != 0]).min()
    return float(distance * values.std(ddof=1) / np.sqrt(len(values)) + step / len(values))
