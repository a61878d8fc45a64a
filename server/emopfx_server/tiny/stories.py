"""Made-up one-step arithmetic stories, in GSM8K's format.

Training and evaluation never share a question: one question in eight, chosen by a checksum of its text, is
held out, and `stories` yields either side of that split, whatever the seed.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from emopfx_server.tiny.words import sections

NAMES = sections()["Names in the stories"]
THINGS = sections()["Things in the stories"]

# `{a}` and `{b}` are the operands in the order of the working, not always that of telling.
TEMPLATES = {
    "+": (
        "{x} has {a} {things}. {y} gives {x} {b} more. How many {things} does {x} have now?",
        "{x} has {a} {things} and {y} has {b} {things}. How many {things} do they have together?",
        "There are {a} {things} on a table. {x} puts {b} more on it. How many {things} are on the table now?",
        "{x} buys {a} {things} on Monday and {b} {things} on Tuesday. How many {things} does {x} buy?",
        "{x} finds {a} {things} in the garden. Then {y} finds {b} {things}. How many {things} do they find?",
        "{x} has {a} {things}. {y} has {b} more {things} than {x}. How many {things} does {y} have?",
        "A bag holds {a} {things}. {x} adds {b} {things} to the bag. How many {things} does it hold now?",
        "{x} sold {a} {things} in the morning and {b} in the afternoon. How many {things} did {x} sell?",
    ),
    "-": (
        "{x} has {a} {things}. {x} gives {b} of them to {y}. How many {things} does {x} have left?",
        "{x} had {a} {things} and lost {b} of them. How many {things} are left?",
        "There are {a} {things} in a box. {x} takes {b} out. How many {things} stay in the box?",
        "{x} has {a} {things} and {y} has {b} {things}. How many more {things} does {x} have than {y}?",
        "{x} wants {a} {things}. So far {x} has {b}. How many {things} does {x} still need?",
        "{y} has already used {b} of the {a} {things} that {x} brought. How many {things} are left?",
        "A shop has {a} {things}. People buy {b} of them. How many {things} does the shop still have?",
    ),
    "*": (
        "{x} has {a} bags with {b} {things} in each bag. How many {things} does {x} have?",
        "{x} buys {b} {things} every day. How many {things} does {x} buy in {a} days?",
        "There are {a} children. {x} gives {b} {things} to each child. How many {things} does {x} give away?",
        "{x} fills {a} shelves with {b} {things} on each shelf. How many {things} are on the shelves?",
        "One of the {things} costs {b} dollars. How many dollars does {x} pay for {a} of them?",
    ),
}
KINDS = [(operator, template) for operator, templates in TEMPLATES.items() for template in templates]

# With the length of the training, these set how many stories the model solves: most, but not all.
LARGEST_OPERAND = {"+": 40, "-": 30, "*": 20}


@dataclass(frozen=True)
class Story:
    """A question, the one line of working that it asks for, and the number that this line ends with."""

    question: str
    working: str
    answer: int

    def record(self) -> dict[str, str]:
        """Return the story as one line of GSM8K has it."""
        return {"question": self.question, "answer": f"{self.working}\n#### {self.answer}"}


def draw(rng: Random) -> Story:
    """Draw one story; all its numbers are whole and none is negative."""
    operator, template = rng.choice(KINDS)
    a, b = (rng.randint(2, LARGEST_OPERAND[operator]) for _ in "ab")
    if operator == "-":
        a, b = max(a, b), min(a, b)
    answer = {"+": a + b, "-": a - b, "*": a * b}[operator]
    x, y = rng.sample(NAMES, 2)
    question = template.format(a=a, b=b, x=x, y=y, things=rng.choice(THINGS))
    return Story(question, f"{a} {operator} {b} = {answer}", answer)


def is_held_out(question: str) -> bool:
    """Say whether a question is one of the eighth that training never sees."""
    return zlib.crc32(question.encode()) % 8 == 0


def stories(seed: int, *, held_out: bool) -> Iterator[Story]:
    """Yield stories without end, no question twice, all held out from training or all free for it."""
    rng = Random(seed)
    seen: set[str] = set()
    while True:
        story = draw(rng)
        if story.question not in seen and is_held_out(story.question) == held_out:
            seen.add(story.question)
            yield story
