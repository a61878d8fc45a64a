"""The activations of an experiment's answers, opened once for all parts that read them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from emopfx.analysis import activations
from emopfx.analysis.activations import Activations, Source
from emopfx.analysis.answers import Answer, Answers
from emopfx.analysis.design import baseline
from emopfx.analysis.schema import ActivationFiles
from emopfx.hashing import Json


@dataclass(frozen=True)
class Captured:
    """Answers that should have activations, and where these are.

    Attributes:
        answers: The answers.
        baseline: The variant that the others are compared with.
        digest: Changes with any of all answers (see `Answers.digest`).
        root: The data folder on this disk.
        source: Where the files are.
    """

    answers: list[Answer]
    baseline: str
    digest: str
    root: Path
    source: Source

    @classmethod
    def of(cls, answers: Answers, root: Path, source: Source, *, expected: bool) -> "Captured":
        """Return all answers where a capture was asked for, else none."""
        asked = answers.finished if expected else []
        return cls(asked, baseline(answers.variants), answers.digest(), root, source)

    @cached_property
    def identity(self) -> Json:
        """What changes with the answers, and with the content of a file."""
        return [self.digest, *activations.identities(self.root, self.source, self.answers)]

    @cached_property
    def opened(self) -> Activations:
        """The activations."""
        return activations.open_answers(self.source, self.answers)

    def files(self) -> ActivationFiles:
        """Say what became of them, as far as is known by now."""
        return ActivationFiles(answers=len(self.answers), unreadable=dict(self.opened.problems))
