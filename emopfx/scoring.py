"""What an answer is, and whether it is right: numbers are compared as numbers, exactly."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,2}}(?![0-9]))?"
# A sign counts only where no number or word ends just before it: "-7", "$-7" and "= -7", but not "5-7".
_NUMBER = (
    r"(?P<sign>(?<![\w.)])[+-])?[$€£¥]?(?P<sign2>(?<![\w.)])-)?"
    rf"(?:(?P<whole>[0-9]+)[ \t]+(?P<part>[0-9]+)\s*/\s*(?P<of>[0-9]+)"
    rf"|(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?)"
    r"(?:\s?[%$€£¥])?"
)
NUMBER = re.compile(_NUMBER)
ANSWER_LINE = re.compile(r"\banswer[*_`]*\s*:", re.IGNORECASE)
FORMAT_LINE = re.compile(rf"Answer: ?{_NUMBER}\.?")
VULGAR_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e]")
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
# No-break, thin and narrow no-break: the spaces that stand between groups of three digits.
DIGIT_SPACE = re.compile("(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
# Python refuses to read longer ones, and no answer is that long.
MAX_DIGITS = 200


@dataclass(frozen=True)
class Score:
    """How good one answer is; `answer` is the number that was read from it, None where there is none."""

    answer: str | None
    gold: str
    correct: bool
    format: bool


def score(text: str, gold: str) -> Score:
    """Score an answer's text against the right number (as `gold_answer` gives it)."""
    value = extract(text)
    return Score(
        answer=None if value is None else str(value),
        gold=gold,
        correct=value is not None and value == Fraction(gold),
        format=has_format(text),
    )


def gold_answer(answer: str) -> str | None:
    """Return the number after the last `####` of a dataset's answer (or its last number), as "7" or "3/4"."""
    value = _last(_plain(answer.rpartition("####")[2]))
    return None if value is None else str(value)


def extract(text: str) -> Fraction | None:
    """Return the number that an answer gives: on its last `Answer:` line, else the last number in it.

    On that line it is the first number (after the last `=`, if there is one), so that "Answer: $5 per 2
    days" gives 5; a line that ends after `Answer:` goes on in the next one. An `Answer:` line without a number
    gives None.
    """
    text = _plain(text)
    labels = list(ANSWER_LINE.finditer(text))
    if not labels:
        return _last(text)
    rest = text[labels[-1].end() :].lstrip(" \t\r\n*_`")
    line = rest.split("\n", 1)[0].rpartition("=")[2]
    match = NUMBER.search(line)
    return None if match is None else _value(match)


def has_format(text: str) -> bool:
    """Whether the last line with text on it is `Answer: <number>` and no more than a full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return bool(lines) and FORMAT_LINE.fullmatch(_plain(lines[-1])) is not None


def _last(text: str) -> Fraction | None:
    matches = list(NUMBER.finditer(text))
    return _value(matches[-1]) if matches else None


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MAX_DIGITS:
        return None
    number = {key: (text or "").replace(",", "") for key, text in match.groupdict().items()}
    try:
        if number["whole"]:
            value = int(number["whole"]) + Fraction(int(number["part"]), int(number["of"]))
        else:
            value = Fraction(number["top"]) / Fraction(number["bottom"] or 1)
    except ZeroDivisionError:
        return None
    return -value if "-" in (number["sign"], number["sign2"]) else value


def _plain(text: str) -> str:
    """Rewrite other ways of writing a number: minus signs, ½, spaces, and LaTeX's fractions, boxes and separators."""
    text = DIGIT_SPACE.sub("", re.sub(r"[\u2212\u2013\ufe63\uff0d]", "-", text))
    text = VULGAR_FRACTION.sub(lambda m: _behind(m, unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/")), text)
    text = LATEX_FRACTION.sub(lambda m: _behind(m, f"{m[1]}/{m[2]}"), text)
    text = re.sub(r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return text.replace("{,}", ",").replace("\\,", ",").replace("\\!", "").replace("\\", "")


def _behind(match: re.Match[str], fraction: str) -> str:
    """Return a fraction, apart from a whole number that it stands behind."""
    return f" {fraction}" if match.string[match.start() - 1 : match.start()].isdigit() else fraction
