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
    `breadcrumb` says where its activations are (see `units.BREADCRUMB`), None where none were captured; where the
    manifest knows of other files than were written, such as some layers only, it names those.
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
        manifest = read_json(record.layout.manifest) or {}
        finished = []
        with Progress("analyze", len(keys)) as progress:
            for number, key in enumerate(keys, 1):
                sample = read_json(record.layout.sample(key) / "sample.json")
                if sample is not None and sample["config_hash"] == record.hash:
                    finished.append(_answer(key, sample, manifest.get(key)))
                progress.update(number)
        return cls(finished, keys, [variant["name"] for variant in record.content["config"]["variants"]])

    @property
    def missing(self) -> list[str]:
        """The keys of the answers that are not there."""
        found = {answer.key for answer in self.finished}
        return [key for key in self.expected if key not in found]

    def digest(self) -> str:
        """Return a digest that changes with any answer, but not with its activations."""
        return hashing.digest([*self.expected, *(list(answer._replace(breadcrumb=None)) for answer in self.finished)])


def _answer(key: str, sample: dict[str, Any], entry: Any) -> Answer:
    metrics, breadcrumb = sample["metrics"], sample["breadcrumb"]
    if not isinstance(breadcrumb, dict):
        breadcrumb = None
    elif isinstance(entry, dict) and entry.get("save_dir") == breadcrumb.get("save_dir"):
        breadcrumb = {**breadcrumb, "files": entry.get("files")}
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
        breadcrumb=breadcrumb,
    )
