"""The rates of tests/bench/calibration.py, on few experiments: bounds are four standard errors away."""

import numpy as np
import pytest

from emopfx.analysis.statistics import ALPHA, POWER, compare
from tests.bench import calibration


def error(rate: float, experiments: int) -> float:
    return float(4 * np.sqrt(rate * (1 - rate) / experiments))


@pytest.mark.parametrize("repeats", [1, 3])
def test_variants_that_change_nothing_raise_few_alarms(repeats: int) -> None:
    rates = calibration.false_alarms(40, 30, repeats, 200)
    assert max(rates.values()) <= ALPHA + error(ALPHA, 40)


def test_a_planted_difference_is_found_and_no_other() -> None:
    table = calibration.answers(np.random.default_rng(0), 150, 3, lift=0.2)
    found = {e.variant: e.accuracy for e in compare(table, calibration.VARIANTS, 500) if e.baseline == "control"}
    assert found["one"].low is not None
    assert found["one"].high is not None
    assert found["one"].low < 0.2 < found["one"].high
    assert [name for name, effect in found.items() if effect.p_holm <= ALPHA] == ["one"]


def test_the_detectable_difference_is_detected_as_often_as_is_said() -> None:
    assert calibration.mcnemar_power(400, 300, 0.2) == pytest.approx(POWER, abs=error(POWER, 400))
    # Two standard errors: without the correction for ties it is 0.775 at most.
    assert calibration.sign_flip_power(2000, 100, 3, 500) == pytest.approx(POWER, abs=error(POWER, 2000) / 2)


def test_clustered_intervals_cover_and_naive_ones_do_not() -> None:
    rates = calibration.coverage(200, 40, 5)
    for name in ("accuracy", "tokens"):
        assert rates[name] >= 0.95 - error(0.95, 200)
        assert rates[f"naive {name}"] < 0.85


@pytest.mark.parametrize("questions", [24, 60])
def test_the_bootstrap_covers(questions: int) -> None:
    assert calibration.bootstrap_coverage(200, questions, 0.1, 400) >= 0.95 - error(0.95, 200)
