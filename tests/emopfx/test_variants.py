from collections import Counter
from statistics import fmean, pstdev

import pytest

from emopfx.variants import BUILT_IN, INSTRUCTION, choose_prefix, messages, phrasing_index

EMOTIONS = [name for name in BUILT_IN if name not in ("control", "neutral")]


def words(prefix: str) -> int:
    return len(prefix.split())


def test_every_variant_but_control_has_five_different_phrasings() -> None:
    assert BUILT_IN["control"] == ()
    for name in (*EMOTIONS, "neutral"):
        assert len(set(BUILT_IN[name])) == 5


def test_neutral_is_as_long_as_the_emotions() -> None:
    emotional = [words(prefix) for name in EMOTIONS for prefix in BUILT_IN[name]]
    neutral = [words(prefix) for prefix in BUILT_IN["neutral"]]
    assert fmean(neutral) == pytest.approx(fmean(emotional), abs=0.5)
    assert pstdev(neutral) == pytest.approx(pstdev(emotional), abs=0.5)


@pytest.mark.parametrize("index", range(5))
def test_a_phrasing_is_about_as_long_in_every_variant(index: int) -> None:
    lengths = [words(BUILT_IN[name][index]) for name in EMOTIONS]
    assert max(lengths) - min(lengths) <= 2
    assert words(BUILT_IN["neutral"][index]) == pytest.approx(fmean(lengths), abs=1)


@pytest.mark.parametrize("name", EMOTIONS)
def test_no_variant_is_longer_on_average(name: str) -> None:
    assert fmean(map(words, BUILT_IN[name])) == pytest.approx(fmean(map(words, BUILT_IN["neutral"])), abs=1)


def test_prefixes_stand_before_the_question_and_control_changes_nothing() -> None:
    assert messages("How many?", None) == [{"role": "user", "content": f"How many?\n\n{INSTRUCTION}"}]
    assert messages("How many?", "Hurry!")[0]["content"] == f"Hurry!\n\nHow many?\n\n{INSTRUCTION}"


def test_a_sample_has_the_same_phrasing_index_in_all_variants() -> None:
    chosen = {choose_prefix(BUILT_IN[name], 0, "gsm8k_0007")[0] for name in (*EMOTIONS, "neutral")}
    assert len(chosen) == 1
    assert choose_prefix((), 0, "gsm8k_0007") == (None, None)


def test_phrasings_are_used_evenly_and_depend_on_the_seed() -> None:
    indices = [phrasing_index(0, f"gsm8k_{i:04d}", 5) for i in range(1000)]
    assert min(Counter(indices).values()) > 150
    assert indices != [phrasing_index(1, f"gsm8k_{i:04d}", 5) for i in range(1000)]
