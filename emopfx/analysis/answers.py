"""The finished answers of an experiment, as the parts of the analysis see them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from emopfx import hashing
from emopfx.layout import read_json
from emopfx.progress import Progress
from emopfx.record import Record


class Answer(NamedTuple):
    """One finished answer, without its text.

    `question` is the sample id, the same in all variants; `truncated` is an answer that was cut at max_tokens;
    `breadcrumb` says where its activations are (see `units.BREADCRUMB`), None where none were captured.
    """

    key: str
    variant: str
    question: str
    repeat: int
    correct: bool
    format: bool
    prompt_tokens: int
    completion_tokens: int
    truncated: bool
    breadcrumb: dict[str, Any] | None


@dataclass(frozen=True)
class Answers:
    """All answers of an experiment that are there.

    Attributes:
        finished: The answers, variant by variant.
        expected: The keys of all answers that a complete experiment has.
        variants: The names of the variants, in the config's order.
    """

    finished: list[Answer]
    expected: list[str]
    variants: list[str]

    @classmethod
    def read(cls, record: Record) -> "Answers":
        """Read the answers of a record's config; those of another config in the same folder don't count."""
        keys = record.sample_keys()
        finished = []
        with Progress("analyze", len(keys)) as progress:
            for number, key in enumerate(keys, 1):
                sample = read_json(record.layout.sample(key) / "sample.json")
                if sample is not None and sample["config_hash"] == record.hash:
                    finished.append(_answer(key, sample))
                progress.update(number)
        return cls(finished, keys, [variant["name"] for variant in record.content["config"]["variants"]])

    @property
    def missing(self) -> list[str]:
        """The keys of the answers that are not there."""
        found = {answer.key for answer in self.finished}
        return [key for key in self.expected if key not in found]

    def digest(self) -> str:
        """Return a digest that changes with any answer and with the activations that a breadcrumb names."""
        return hashing.digest([*self.expected, *(list(answer) for answer in self.finished)])


def _answer(key: str, sample: dict[str, Any]) -> Answer:
    metrics = sample["metrics"]
    return Answer(
        key=key,
        variant=sample["variant"],
        question=sample["sample_id"],
        repeat=sample["repeat"],
        correct=metrics["correct"],
        format=metrics["format"],
        prompt_tokens=metrics["prompt_tokens"],
        completion_tokens=metrics["completion_tokens"],
        truncated=metrics["finish_reason"] == "length",
        breadcrumb=sample["breadcrumb"],
    )
