import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from emopfx.analysis import inference


@pytest.mark.parametrize(("hits", "n"), [(0, 4), (1, 7), (50, 100), (9, 9)])
def test_a_share_with_one_value_a_cluster_has_wilsons_interval(hits: int, n: int) -> None:
    found = inference.clustered_share((np.arange(n) < hits).astype(float), np.arange(n))
    assert found.value == hits / n
    assert (found.low, found.high) == pytest.approx(proportion_confint(hits, n, method="wilson"))


@pytest.mark.parametrize("n", range(2, 60))
def test_the_interval_of_none_begins_at_0_and_that_of_all_ends_at_1(n: int) -> None:
    assert inference.clustered_share(np.zeros(n), np.arange(n)).low == 0
    assert inference.clustered_share(np.ones(n), np.arange(n)).high == 1


def test_answers_that_repeat_each_other_count_once() -> None:
    questions = np.repeat(np.arange(20), 5)
    hits = (questions < 12).astype(float)
    repeated = inference.clustered_share(hits, questions)
    once = inference.clustered_share(hits[::5], np.arange(20))
    assert repeated.value == once.value == 0.6
    assert repeated.low is not None
    assert once.low is not None
    # Only the t quantile of few clusters makes it a little wider.
    assert once.low - 0.02 < repeated.low <= once.low
    tokens = inference.clustered_mean(10.0 * hits, questions)
    half = stats.t.ppf(0.975, 19) * 10 * np.std(hits[::5], ddof=1) / np.sqrt(20)
    assert (tokens.low, tokens.high) == pytest.approx((6 - half, 6 + half))


def test_equal_answers_are_as_many_as_their_questions() -> None:
    found = inference.clustered_share(np.ones(40), np.repeat(np.arange(8), 5))
    assert found.value == found.high == 1
    assert found.low is not None
    assert found.low < proportion_confint(8, 8, method="wilson")[0]


def test_one_question_has_no_interval() -> None:
    for method in (inference.clustered_share, inference.clustered_mean):
        found = method(np.array([0.0, 1.0]), np.array([3, 3]))
        assert (found.value, found.low, found.high) == (0.5, None, None)


def test_bootstrap_agrees_with_a_t_interval_and_with_the_seed() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (2, 200))
    rows[1, 150:] = np.nan
    low, high = inference.bootstrap(rows, 4000, 1)
    for row, ends in zip(rows, zip(low, high, strict=True), strict=True):
        values = row[~np.isnan(row)]
        expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert ends == pytest.approx(expected, abs=0.05)
    assert np.array_equal(inference.bootstrap(rows, 4000, 1)[0], low)
    assert not np.array_equal(inference.bootstrap(rows, 4000, 2)[0], low)


def test_bootstrap_learns_nothing_where_nothing_differs() -> None:
    low, high = inference.bootstrap(np.array([[0.0, 0, 0], [0, 1, np.nan], [1, np.nan, np.nan]]), 100, 1)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, False, True]


def test_sign_flips_agree_with_scipys() -> None:
    rows = np.random.default_rng(3).normal(0.5, 1, (3, 12))
    found = inference.sign_flip(rows, 20_000, 1)
    for row, p in zip(rows, found, strict=True):
        exact = stats.permutation_test((row,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert p == pytest.approx(exact.pvalue, abs=0.012)


def test_sign_flips_that_tie_with_what_was_seen_count() -> None:
    assert inference.sign_flip(np.array([[0.1, 0.2, -0.3, np.nan]]), 500, 1) == [1.0]
    assert inference.sign_flip(np.zeros((1, 5)), 500, 1) == [1.0]


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_statsmodels(losses: int, wins: int) -> None:
    p = inference.mcnemar(losses, wins)
    if losses + wins:
        assert p == pytest.approx(min(1.0, reference_mcnemar([[0, losses], [wins, 0]], exact=True).pvalue))
    else:
        assert p == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_statsmodels(values: list[float]) -> None:
    p = np.array(values)
    assert inference.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_power_of_mcnemar_is_what_all_outcomes_come_to() -> None:
    pairs, changed, difference = 12, 0.5, 0.4
    worse, better = (changed - difference) / 2, (changed + difference) / 2
    expected = sum(
        stats.multinomial.pmf([lost, won, pairs - lost - won], pairs, [worse, better, 1 - changed])
        for lost in range(pairs + 1)
        for won in range(pairs + 1 - lost)
        if inference.mcnemar(lost, won) <= 0.05
    )
    assert inference.mcnemar_power(difference, changed, pairs, 0.05) == pytest.approx(expected)


def test_the_detectable_difference_has_the_power_it_names() -> None:
    found = inference.detectable_share(200, 40, 0.01, 0.8)
    assert found is not None
    assert inference.mcnemar_power(found, 0.2, 200, 0.01) == pytest.approx(0.8, abs=0.01)


def test_few_pairs_detect_little_or_nothing() -> None:
    none_changed, too_few = (inference.detectable_share(pairs, 0, 0.05, 0.8) for pairs in (24, 5))
    assert none_changed is not None
    # Six changes in one direction are the fewest that the test finds at this level.
    assert stats.binom.sf(5, 24, none_changed) == pytest.approx(0.8, abs=0.01)
    assert too_few is None


def test_the_detectable_mean_is_a_t_tests_and_a_step_more() -> None:
    differences = np.append(np.random.default_rng(0).normal(0, 4, 50), np.nan)
    found = inference.detectable_mean(differences, 0.05, 0.8)
    assert found is not None
    step = np.nanmin(np.abs(differences)) / 50
    error = np.nanstd(differences, ddof=1) / np.sqrt(50)
    t = stats.nct(49, (found - step) / error)
    assert t.sf(stats.t.ppf(0.975, 49)) == pytest.approx(0.8, abs=0.01)
    assert inference.detectable_mean(np.zeros(4), 0.05, 0.8) is None
