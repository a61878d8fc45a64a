"""The unit of work: one answer to one question in one variant, how it is asked for, and how it is kept."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emopfx import hashing, scoring, steering, variants
from emopfx.config import Experiment, Intervention, Variant
from emopfx.dataset import Sample
from emopfx.layout import Layout, sample_key, write_json, write_text
from emopfx.sampling import CapturedResponse, SamplingError

# What sample.json keeps of the server's breadcrumb.
BREADCRUMB = ("save_dir", "request_id", "files", "bytes", "tokens")


@dataclass(frozen=True)
class Unit:
    """One answer to get: a question in a variant, for the `repeat`-th time (from 1).

    `phrasing` is the index of `prefix` in the variant; both are None where the variant changes nothing.
    """

    key: str
    variant: str
    sample: Sample
    repeat: int
    phrasing: int | None
    prefix: str | None
    seed: int
    request_id: str
    config_hash: str
    interventions: tuple[Intervention, ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that asks for the answer."""
        return variants.messages(self.sample.question, self.prefix)


def plan(experiment: Experiment, samples: list[Sample], config_hash: str) -> list[Unit]:
    """Return all answers of an experiment, question by question.

    The seed depends on the question and the repeat, not on the variant: variants are compared at equal
    luck. The request id depends on all that names the answer, so that asking again is no second answer.
    """
    repeats = range(1, experiment.generation.repeats + 1)
    return [
        _unit(experiment, variant, sample, repeat, config_hash)
        for sample in samples
        for variant in experiment.variants
        for repeat in repeats
    ]


def _unit(experiment: Experiment, variant: Variant, sample: Sample, repeat: int, config_hash: str) -> Unit:
    generation, sample_id = experiment.generation, sample.sample_id
    phrasing, prefix = variants.choose_prefix(variant.prefixes, generation.seed, sample_id)
    return Unit(
        key=sample_key(variant.name, sample_id, repeat, generation.repeats),
        variant=variant.name,
        sample=sample,
        repeat=repeat,
        phrasing=phrasing,
        prefix=prefix,
        seed=int(hashing.digest(["seed", generation.seed, sample_id, repeat])[:7], 16),
        request_id=hashing.digest(["request", config_hash, variant.name, sample_id, repeat])[:24],
        config_hash=config_hash,
        interventions=tuple(variant.interventions),
    )


def ndif_request(unit: Unit, experiment: Experiment, layout: Layout, num_layers: int | None = None) -> dict[str, Any]:
    """Return the request field `ndif`: what the server is to change and to capture, and where it puts that.

    Args:
        unit: What is asked.
        experiment: The config.
        layout: Where the results are.
        num_layers: How many layers the model has, where that is known.
    """
    capture = experiment.capture
    request: dict[str, Any] = {"request_id": unit.request_id, "capture": capture.enabled}
    if unit.interventions:
        request["interventions"] = [
            steering.request(one, experiment.name, layout.root, num_layers) for one in unit.interventions
        ]
    if not capture.enabled:
        return request
    return {
        **request,
        **capture.model_dump(exclude={"enabled"}),
        "save_dir": layout.save_dir(unit.key),
        "per_request_subdir": True,
        "config_hash": unit.config_hash,
    }


def manifest_entry(breadcrumb: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of an answer's activations as long as they are only here."""
    return {
        "save_dir": breadcrumb["save_dir"],
        "request_id": breadcrumb["request_id"],
        "uri": None,
        "files": breadcrumb["files"],
        "tokens": breadcrumb["tokens"],
    }


def save(unit: Unit, answer: CapturedResponse, layout: Layout, endpoint: str, started: str) -> None:
    """Write the files of an answered unit; sample.json comes last and marks it as complete.

    Args:
        unit: What was asked.
        answer: What was answered.
        layout: Where the results are.
        endpoint: The server's address.
        started: When the question was sent.

    Raises:
        SamplingError: If the answer does not say all about its activations.
        OSError: If the files can't be written.
    """
    folder = layout.sample(unit.key)
    sample = _sample(unit, answer)
    turns = [*unit.messages, {"role": "assistant", "content": answer.content}]
    lines = [json.dumps(turn, ensure_ascii=False) + "\n" for turn in turns]
    write_text(folder / "trajectory.jsonl", "".join(lines))
    write_json(folder / "agent_state.json", _agent_state(unit, answer, endpoint, started))
    write_json(folder / "sample.json", sample)


def _agent_state(unit: Unit, answer: CapturedResponse, endpoint: str, started: str) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "provider": answer.provider,
        "model": answer.model,
        "request_id": unit.request_id,
        "stop_reason": answer.finish_reason,
        "turns": 1,
        "usage": answer.usage.to_dict(),
        "timing": {"started": started, "seconds": round(answer.seconds, 4), "attempts": answer.attempts},
        "batch_sizes": answer.ndif.get("batch_sizes"),
    }


def _sample(unit: Unit, answer: CapturedResponse) -> dict[str, Any]:
    breadcrumb = answer.ndif if answer.ndif.get("save_dir") else None
    lacking = [key for key in BREADCRUMB if breadcrumb and key not in breadcrumb]
    if lacking:
        raise SamplingError(f"the server's breadcrumb has no {', '.join(lacking)}")
    return {
        "sample_id": unit.sample.sample_id,
        "question": unit.sample.question,
        "variant": unit.variant,
        "repeat": unit.repeat,
        "phrasing": unit.phrasing,
        "prefix": unit.prefix,
        "seed": unit.seed,
        "request_id": unit.request_id,
        "config_hash": unit.config_hash,
        "metrics": {
            **asdict(scoring.score(answer.content, unit.sample.gold)),
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "finish_reason": answer.finish_reason,
        },
        "breadcrumb": breadcrumb and {key: breadcrumb[key] for key in BREADCRUMB},
    }
