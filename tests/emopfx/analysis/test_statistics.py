from typing import Any

import numpy as np
import pytest

from emopfx.analysis.answers import Answer, Answers
from emopfx.analysis.statistics import statistics


def answers(grid: dict[str, list[list[int | None]]], truncated: tuple[str, ...] = ()) -> Answers:
    """Make answers from a grid: by variant, by question, by repeat 1 (right), 0 (wrong) or None (missing)."""
    finished, expected = [], []
    for variant, questions in grid.items():
        for number, repeats in enumerate(questions):
            for repeat, correct in enumerate(repeats, 1):
                key = f"{variant}/q{number}" + (f"/r{repeat}" if len(repeats) > 1 else "")
                expected.append(key)
                if correct is not None:
                    values: dict[str, Any] = {"correct": bool(correct), "format": True, "breadcrumb": None}
                    tokens = 10 + number + 5 * (variant != "control")
                    row = Answer(
                        key=key,
                        variant=variant,
                        question=f"q{number}",
                        repeat=repeat,
                        prompt_tokens=30,
                        completion_tokens=tokens,
                        truncated=key in truncated,
                        **values,
                    )
                    finished.append(row)
    return Answers(finished, expected, list(grid))


def test_variants_are_compared_with_control_and_with_neutral() -> None:
    grid: dict[str, list[list[int | None]]] = {name: [[1], [0]] for name in ("control", "calm", "hurry", "neutral")}
    found = statistics(answers(grid), 50).comparisons
    assert [(entry.variant, entry.baseline) for entry in found] == [
        ("calm", "control"),
        ("hurry", "control"),
        ("neutral", "control"),
        ("calm", "neutral"),
        ("hurry", "neutral"),
    ]


def test_without_control_and_neutral_the_first_variant_is_the_baseline() -> None:
    found = statistics(answers({"terse": [[1]], "rude": [[0]]}), 50).comparisons
    assert [(entry.variant, entry.baseline) for entry in found] == [("rude", "terse")]


def test_a_difference_is_that_of_the_pairs_and_flips_are_named() -> None:
    found = statistics(answers({"control": [[1], [1], [0], [1], [None]], "calm": [[1], [0], [1], [0], [1]]}), 200)
    (calm,) = found.comparisons
    assert (calm.pairs, calm.questions) == (4, 4)
    assert calm.accuracy.difference == -0.25
    assert (calm.right_to_wrong, calm.wrong_to_right) == (["q1", "q3"], ["q2"])
    assert (calm.accuracy.test, calm.accuracy.p) == ("mcnemar", 1.0)
    assert calm.accuracy.low is not None
    assert calm.accuracy.low < -0.25
    assert calm.completion_tokens.difference == 5
    assert calm.completion_tokens.low is None
    assert calm.completion_tokens.test == "sign-flip"
    assert [entry.n for entry in found.variants] == [4, 5]


def test_repeats_are_paired_with_each_other_and_averaged_by_question() -> None:
    grid: dict[str, list[list[int | None]]] = {"control": [[1, 1], [0, 0]], "calm": [[0, 1], [None, 1]]}
    found = statistics(answers(grid), 200)
    (calm,) = found.comparisons
    assert (calm.pairs, calm.questions) == (3, 2)
    # -1/2 in the first question, +1 in the one pair of the second.
    assert calm.accuracy.difference == 0.25
    assert calm.accuracy.test == "sign-flip"
    assert (calm.right_to_wrong, calm.wrong_to_right) == (["q0"], ["q1/r2"])


def test_holms_family_is_the_variants_of_one_baseline() -> None:
    right: list[list[int | None]] = [[1]] * 12
    wrong: list[list[int | None]] = [[0]] * 12
    grid = {"control": right, "bad": wrong, "same": right, "neutral": right}
    found = {(e.variant, e.baseline): e.accuracy for e in statistics(answers(grid), 50).comparisons}
    p = 2 * 0.5**12
    assert found["bad", "control"].p == pytest.approx(p)
    assert found["bad", "control"].p_holm == pytest.approx(3 * p)
    assert found["bad", "neutral"].p_holm == pytest.approx(2 * p)
    assert found["same", "control"].p_holm == 1


def test_truncated_answers_take_their_pairs_along() -> None:
    grid: dict[str, list[list[int | None]]] = {"control": [[1], [0], [1]], "calm": [[0], [1], [1]]}
    found = statistics(answers(grid, truncated=("calm/q0",)), 50)
    assert [entry.truncated for entry in found.variants] == [0, 1]
    assert found.comparisons[0].pairs == 3
    assert found.without_truncated
    assert found.without_truncated[0].pairs == 2
    assert found.without_truncated[0].right_to_wrong == []
    assert statistics(answers(grid), 50).without_truncated is None


def test_a_variant_without_answers_is_there_without_figures() -> None:
    found = statistics(answers({"control": [[1], [0]], "calm": [[None], [None]]}), 50)
    assert found.comparisons == []
    assert (found.variants[1].n, found.variants[1].expected, found.variants[1].accuracy) == (0, 2, None)


def test_large_runs_are_in_the_same_units() -> None:
    draw = np.random.default_rng(0)
    grid: dict[str, list[list[int | None]]] = {
        name: [[int(value)] for value in draw.random(400) < chance]
        for name, chance in (("control", 0.8), ("calm", 0.5))
    }
    (calm,) = statistics(answers(grid), 500).comparisons
    assert calm.accuracy.low is not None
    assert calm.accuracy.high is not None
    assert calm.accuracy.low < -0.3 < calm.accuracy.high < 0
    assert calm.accuracy.p_holm < 1e-6


def test_where_all_questions_differ_alike_the_interval_is_of_how_many_could_not() -> None:
    grid: dict[str, list[list[int | None]]] = {"control": [[0]] * 10, "calm": [[1]] * 10}
    (calm,) = statistics(answers(grid), 50).comparisons
    # Of ten questions none differs otherwise with 5 % probability if a share of 1 - 0.05^(1/10) of all does.
    others = 1 - 0.05**0.1
    assert (calm.accuracy.low, calm.accuracy.high) == pytest.approx((1 - 2 * others, 1))
    assert (calm.format.low, calm.format.high) == pytest.approx((-others, others))
    assert calm.completion_tokens.low is None
    single: dict[str, list[list[int | None]]] = {"control": [[0]], "calm": [[1]]}
    assert statistics(answers(single), 50).comparisons[0].accuracy.low is None


def test_no_detectable_difference_of_shares_is_larger_than_1() -> None:
    grid: dict[str, list[list[int | None]]] = {"control": [[1, 1], [0, 0], [0, 1]], "calm": [[0, 0], [1, 1], [1, 1]]}
    (calm,) = statistics(answers(grid), 50).comparisons
    assert calm.accuracy.test == "sign-flip"
    assert calm.accuracy.detectable is None
