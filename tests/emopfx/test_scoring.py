from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emopfx.scoring import extract, gold_answer, has_format, number_text, score


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
        ("Answer: Rs.500", "500"),
        ("It is No.5", "5"),
        ("Answer: $.50", "1/2"),
        ("Answer: 42 (x = 6)", "42"),
        ("Answer: (3 + 4 = 7)", "7"),
        ("Answer: 3 + 4 = 7 (= 14/2)", "7"),
        ("Answer: 42 = forty-two", "42"),
        ("Answer: 5 =", "5"),
        ("Answer:\n$$\n42\n$$", "42"),
        ("Answer:\n\\[\n42\n\\]", "42"),
        ("Answer: \\[ 42 \\]", "42"),
        ("Answer: \\( x = 42 \\)", "42"),
        ("Answer: \N{HYPHEN}7", "-7"),
        ("Answer: \N{NON-BREAKING HYPHEN}7", "-7"),
        ("Answer: \N{EM DASH}7", "-7"),
        ("Answer: - 7", "-7"),
        ("**Answer:** - 7", "-7"),
        ("Answer: $- 7$", "-7"),
        ("Answer: - $5", "-5"),
        ("Answer: 3 - 10 = - 7", "-7"),
        ("5 \N{EM DASH} or is it 5 - 7", "7"),
        ("Here they are:\n- 5 pears\n- 7 plums", "7"),
        ("Answer: \\frac12", "1/2"),
        ("Answer: $1\\frac{1}2$", "3/2"),
        ("Answer: \uff14\uff12\uff0e\uff15", "42.5"),
        ("Answer\uff1a\uff0d\uff14\uff12", "-42"),
        ("Answer: 1,23,456", "123456"),
        ("Answer: 12,34,567.5", "1234567.5"),
        ("Answer: 1,500 1/2", "1500.5"),
        ("Answer: 42\nLet me double-check the answer: 6 times 7 is 42.", "42"),
        ("Answer: 42. I double-checked the answer: 6 times 7", "42"),
        ("So the final answer: 42\nThat was the answer: 1 of 2.", "42"),
        ("I think the answer: 42 (of 50)", "42"),
        ("She has 5 apples.\nAnswer:", "5"),
        ("12 apples. Answer: none", "12"),
        ("Answer: 8\nAnswer: none", "8"),
        ("Answer: Answer: 8", "8"),
    ],
)
def test_extracts_the_number_of_an_answer(text: str, number: str) -> None:
    assert extract(text) == Fraction(number)


@pytest.mark.parametrize(
    "text",
    # "12 apples. Answer: none" and the like give the last number of the text: the label holds none.
    ["", "no idea", "Answer: none", "Answer:", "Answer: <number>", "Answer: 3/0", "9" * 5000],
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
    assert gold_answer("#### 2,469/2") == "1234.5"
    assert gold_answer("#### 1/3") == "1/3"
    assert gold_answer("#### unknown") is None


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [("0.5", "1/2", True), ("12.00", "12", True), ("1,200", "1200", True), ("3", "4", False), ("none", "4", False)],
)
def test_correctness_is_numeric_equality(answer: str, gold: str, correct: bool) -> None:
    assert score(f"Answer: {answer}", gold).correct is correct


@pytest.mark.parametrize(
    ("text", "answer"),
    [("1,234.50", "1234.5"), ("-3/4", "-0.75"), ("1/3", "1/3"), ("-7", "-7"), ("0.05", "0.05"), ("1e3", "1000")],
)
def test_numbers_are_kept_as_decimals_where_they_have_an_end(text: str, answer: str) -> None:
    assert score(f"Answer: {text}", "1").answer == answer


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9))
def test_a_decimal_means_the_number_it_was_made_from(number: Decimal) -> None:
    assert Fraction(number_text(Fraction(number))) == Fraction(number)


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
