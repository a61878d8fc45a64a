"""What an answer is, and whether it is right: numbers are compared as numbers, exactly."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

# With commas between groups of three digits, or as in India: 1,23,456.
_DIGITS = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9])"
    r"|[0-9]+)"
)
# A number begins with its point only where no word ends in it: ".5", but not "Rs.500" and "No.5".
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|(?<!\w)\.[0-9]+)(?:[eE][+-]?[0-9]{{1,2}}(?![0-9]))?"
# A sign counts only where no number or word ends just before it: "-7", "$-7" and "= -7", but not "5-7".
_NUMBER = (
    r"(?P<sign>(?<![\w.)])[+-])?[$€£¥]?(?P<sign2>(?<![\w.)])-)?"
    rf"(?:(?P<whole>{_DIGITS})[ \t]+(?P<part>[0-9]+)\s*/\s*(?P<of>[0-9]+)"
    rf"|(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?)"
    r"(?:\s?[%$€£¥])?"
)
NUMBER = re.compile(_NUMBER)
ANSWER_LABEL = re.compile(r"\banswer[*_`]*\s*[:\uff1a]", re.IGNORECASE)
# The label of a line that gives the answer, as opposed to one inside a sentence: "let me check the answer: …".
ANSWER_LINE = re.compile(r"[\W\d_]*(?:(?:so|the|my|final|correct)\s+)*answer[*_`]*\s*[:\uff1a]", re.IGNORECASE)
FORMAT_LINE = re.compile(rf"Answer: ?{_NUMBER}\.?")
# What may stand around an answer in Markdown and LaTeX.
MARKUP = " \t*_`$"
MINUS = re.compile("[\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d]")
# "- 7" is a number less than 0 where nothing stands before it from which it could be taken away.
SPACED_MINUS = re.compile(r"(?<=[=:$({\[*_`\uff1a])([ \t]*)-[ \t]+(?=[\\$€£¥.0-9])")
# Full-width digits, and the signs that stand in and around numbers.
WIDE = str.maketrans({chr(code): chr(code - 0xFEE0) for code in (*range(0xFF10, 0xFF1A), *map(ord, "．，％＄／＝"))})  # noqa: RUF001
VULGAR_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e]")
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))")
LATEX_FORMULA = re.compile(r"\\[\[\]()]|\$\$")
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
        answer=None if value is None else number_text(value),
        gold=gold,
        correct=value is not None and value == Fraction(gold),
        format=has_format(text),
    )


def gold_answer(answer: str) -> str | None:
    """Return the number after the last `####` of a dataset's answer (or its last number), as "7", "0.75" or "1/3"."""
    value = _last(_plain(answer.rpartition("####")[2]))
    return None if value is None else number_text(value)


def number_text(value: Fraction) -> str:
    """Return a number as a decimal if it has an end, else as a fraction: "7", "1234.5", "1/3"."""
    places = value.denominator.bit_length()
    if value.denominator == 1 or 10**places % value.denominator:
        return str(value)
    digits = str(abs(value) * 10**places).rjust(places + 1, "0")
    return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:].rstrip('0')}"


def extract(text: str) -> Fraction | None:
    """Return the number that an answer gives: on its last `Answer:` line that holds one, else the last number in it.

    On that line it is the first number (behind the last `=` that has one behind it), so that "Answer: $5 per 2 days"
    gives 5; a line that ends after `Answer:` goes on in the next one. A label inside a sentence counts only where no
    line begins with one.
    """
    lines = [line for line in _plain(text).splitlines() if line.strip(MARKUP)]
    inside: Fraction | None = None
    for line, following in zip(reversed(lines), ["", *reversed(lines)], strict=False):
        _, *answers = ANSWER_LABEL.split(line)
        if not answers:
            continue
        if not answers[-1].strip(MARKUP):
            answers[-1] = following
        values = [_first(answer) for answer in answers]
        if values[0] is not None and ANSWER_LINE.match(line):
            return values[0]
        if inside is None:
            inside = next((value for value in reversed(values) if value is not None), None)
    return _last("\n".join(lines)) if inside is None else inside


def has_format(text: str) -> bool:
    """Whether the last line with text on it is `Answer: <number>` and no more than a full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return bool(lines) and FORMAT_LINE.fullmatch(_plain(lines[-1])) is not None


def _first(text: str) -> Fraction | None:
    """Return the first number of an answer, or of what the last equals sign in it makes it to."""
    first = NUMBER.search(text)
    if first is None:
        return None
    # "42 (x = 6)" is no equation.
    sides = re.sub(r"\([^()]*", lambda m: m[0].replace("=", " ") if m.start() > first.start() else m[0], text)
    matches = (NUMBER.search(side) for side in reversed(sides.split("=")))
    return next((_value(match) for match in matches if match), None)


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
    """Rewrite other ways of writing a number: minus signs, ½, wide digits, spaces, and LaTeX."""
    text = SPACED_MINUS.sub(r"\1-", MINUS.sub("-", text.translate(WIDE)))
    text = DIGIT_SPACE.sub("", LATEX_FORMULA.sub(" ", text))
    text = VULGAR_FRACTION.sub(lambda m: _behind(m, unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/")), text)
    text = LATEX_FRACTION.sub(lambda m: _behind(m, f"{m[1] or m[2]}/{m[3] or m[4]}"), text)
    text = re.sub(r"\\(?:boxed|text|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    return text.replace("{,}", ",").replace("\\,", ",").replace("\\!", "").replace("\\", "")


def _behind(match: re.Match[str], fraction: str) -> str:
    """Return a fraction, apart from a whole number that it stands behind."""
    return f" {fraction}" if match.string[match.start() - 1 : match.start()].isdigit() else fraction
