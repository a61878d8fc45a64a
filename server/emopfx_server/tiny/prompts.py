"""The messages that training and evaluation put stories in: with or without a prefix and an instruction."""

import string
from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random

from emopfx_server.tiny.stories import Story, stories

Message = dict[str, str]

# The pipeline asks in the words of the first; the others keep the model from depending on them.
INSTRUCTIONS = (
    'Think step by step, then give the final answer on its own last line as "Answer: <number>".',
    'End with a line "Answer: <number>".',
    "Show your work. Write the answer on the last line.",
    'Solve the problem and finish with "Answer:" and the number.',
)
LONGEST_PREFIX = 60


def prefix(rng: Random, words: Sequence[str]) -> str:
    """Return up to 60 random words in sentences of random length; some are numbers and some are unknown."""
    length = 1 + int(LONGEST_PREFIX * rng.random() ** 2)
    sentences = []
    while length > 0:
        sentence = [_word(rng, words) for _ in range(min(length, rng.randint(3, 14)))]
        length -= len(sentence)
        if rng.random() < 0.3:
            sentence[len(sentence) // 2] += ","
        sentences.append(" ".join([sentence[0].capitalize(), *sentence[1:]]) + rng.choice("...!?"))
    return " ".join(sentences)


def _word(rng: Random, words: Sequence[str]) -> str:
    draw = rng.random()
    if draw < 0.03:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))
    if draw < 0.07:
        return str(rng.randint(0, rng.choice((9, 60, 2100))))
    return rng.choice(words)


def prompt(story: Story, before: str = "", instruction: str = "") -> list[Message]:
    """Return a story's one user message, with what stands before and after the question."""
    content = "\n\n".join(part for part in (before, story.question, instruction) if part)
    return [{"role": "user", "content": content}]


def target(story: Story) -> str:
    """Return what the model is to answer: the working and, on the last line, `Answer: <number>`."""
    return f"{story.working}\nAnswer: {story.answer}"


def lessons(seed: int, words: Sequence[str]) -> Iterator[tuple[list[Message], str]]:
    """Yield training prompts with their answers, without end.

    Half have a prefix, three in four an instruction (mostly the pipeline's), one in twenty a system message.
    """
    rng = Random(seed)
    for story in stories(seed, held_out=False):
        before = prefix(rng, words) if rng.random() < 0.5 else ""
        messages = prompt(story, before, rng.choice((*INSTRUCTIONS, *INSTRUCTIONS[:1] * 2, "", "")))
        if rng.random() < 0.05:
            messages.insert(0, {"role": "system", "content": prefix(rng, words)})
        yield messages, target(story)


def exam(count: int, seed: int, words: Sequence[str], *, prefixed: bool) -> list[tuple[list[Message], Story]]:
    """Return held-out stories as the pipeline asks them: with its instruction and, if wanted, a prefix."""
    rng = Random(seed)
    return [
        (prompt(story, prefix(rng, words) if prefixed else "", INSTRUCTIONS[0]), story)
        for story in islice(stories(seed, held_out=True), count)
    ]
