from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emopfx.scoring import extract, gold_answer, has_format, score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Answer: 42", "42"),
        ("answer:42", "42"),
        ("Answer: 1,234.50.", "1234.5"),
        ("Answer: $5 per day", "5"),
        ("Answer: $5 per 2 days", "5"),
        ("The answer is 5", "5"),
        ("**Answer:** 42", "42"),
        ("**Answer: 42**", "42"),
        ("Answer:\n\n**42**", "42"),
        ("Answer: \\boxed{\\frac{3}{4}}", "3/4"),
        ("So it is $\\boxed{1{,}200}$.", "1200"),
        ("Answer: \\$1\\,200", "1200"),
        ("Answer: 3/4", "3/4"),
        ("Answer: 1 1/2", "3/2"),
        ("Answer: -1 1/2", "-3/2"),
        ("Answer: 1½ cups", "3/2"),
        ("Answer: 50%", "50"),
        ("Answer: 12.5 %", "25/2"),
        ("Answer: -7", "-7"),
        ("Answer: \N{MINUS SIGN}7", "-7"),
        ("Answer: -$5", "-5"),
        ("Answer: $-5", "-5"),
        ("Answer: +3", "3"),
        ("Answer: .5", "1/2"),
        ("Answer: 3.", "3"),
        ("Answer: 1.5e3", "1500"),
        ("Answer: 3 + 4 = 7", "7"),
        ("Answer: 10\nWait.\nAnswer: 20", "20"),
        ("Final Answer: 20 apples, of 30", "20"),
        ("first 12, then 5-7", "7"),
        ("it is 10,000,000", "10000000"),
        ("3, 4", "4"),
        ("line 1\n1/2", "1/2"),
        ("The answer: 8", "8"),
        ("Answer: $-\\frac{3}{4}$", "-3/4"),
        ("Answer: 2\\frac{1}{2}", "5/2"),
        ("\\boxed{-\\frac{1}{2}}", "-1/2"),
        ("Answer: -½", "-1/2"),
        ("Answer: 1\N{THIN SPACE}234", "1234"),
        ("Answer: 1\N{NARROW NO-BREAK SPACE}234\N{NO-BREAK SPACE}567 €", "1234567"),
        ("Answer: 12\N{NO-BREAK SPACE}apples", "12"),
        ("Answer: ¥5 of 7", "5"),
    ],
)
def test_extracts_the_number_of_an_answer(text: str, number: str) -> None:
    assert extract(text) == Fraction(number)


@pytest.mark.parametrize(
    "text",
    ["", "no idea", "12 apples. Answer: none", "Answer:", "Answer: <number>", "Answer: 3/0", "9" * 5000],
)
def test_finds_no_number_where_none_is_given(text: str) -> None:
    assert extract(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 2 = 4\nAnswer: 4", True),
        ("Answer: 4\n\n", True),
        ("Answer: $1,234.50.", True),
        ("Answer: -3/4", True),
        ("Answer: ½", True),
        ("Answer: 5 €", True),
        ("Answer: 4 apples", False),
        ("Answer: 4\nI hope that helps.", False),
        ("**Answer: 4**", False),
        ("The answer is 4", False),
        ("answer: 4", False),
        ("Answer:", False),
        ("", False),
    ],
)
def test_format_is_a_last_line_with_answer_and_number_only(text: str, expected: bool) -> None:
    assert has_format(text) is expected


def test_gold_answer_stands_after_the_hashes() -> None:
    assert gold_answer("She has 16 - 3 = <<16-3=13>>13 eggs.\n#### 1,300") == "1300"
    assert gold_answer("7") == "7"
    assert gold_answer("#### unknown") is None


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [("0.5", "1/2", True), ("12.00", "12", True), ("1,200", "1200", True), ("3", "4", False), ("none", "4", False)],
)
def test_correctness_is_numeric_equality(answer: str, gold: str, correct: bool) -> None:
    assert score(f"Answer: {answer}", gold).correct is correct


@given(st.integers(-(10**12), 10**12))
def test_integers_are_read_in_every_way_of_writing_them(number: int) -> None:
    for text in (str(number), f"{number:,}", f"{number}.00", f"{number}%", f"**{number}**"):
        assert extract(f"so many\nAnswer: {text}") == number
    minus = str(number).replace("-", "\N{MINUS SIGN}")
    assert extract(f"it is {minus}.") == number
    assert has_format(f"Answer: {number:,}.")


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_exact(top: int, bottom: int) -> None:
    assert extract(f"Answer: {top}/{bottom}") == Fraction(top, bottom)
    assert score(f"Answer: {top}/{bottom}", str(Fraction(top, bottom))).correct


@given(st.text(max_size=200))
def test_any_text_can_be_scored(text: str) -> None:
    for variant in (text, f"Answer: {text}", f"#### {text}"):
        score(variant, "1")
        gold_answer(variant)


def test_long_texts_take_no_long_time() -> None:
    score("1 " * 50_000 + "1" * 50_000 + "\n" + "Answer: " * 10_000, "1")
