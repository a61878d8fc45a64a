"""The questions: read from the Hugging Face hub or a file, chosen by seed, and named."""

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emopfx import hashing, scoring
from emopfx.config import Dataset
from emopfx.errors import InputError
from emopfx.hashing import Json

SPLIT_NAMES = ("test", "train", "validation", "valid", "dev", "data")


@dataclass(frozen=True)
class Sample:
    """One question. `sample_id` carries the row's number in the dataset, counted from 1."""

    sample_id: str
    question: str
    gold: str


def stem(dataset: Dataset) -> str:
    """Return the short name that sample ids begin with: gsm8k for openai/gsm8k and for …/gsm8k/test.jsonl."""
    path = Path(dataset.path)
    name = path.name if not dataset.is_file else path.stem
    if dataset.is_file and name.lower() in SPLIT_NAMES and path.parent.name:
        name = path.parent.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "sample"


def fingerprint(dataset: Dataset) -> dict[str, Json]:
    """Return what identifies the questions: a file by its content, a dataset of the hub by its name."""
    selection: dict[str, Json] = {"name": stem(dataset), "samples": dataset.samples, "seed": dataset.seed}
    if dataset.is_file:
        return {**selection, "sha256": hashing.file_sha256(Path(dataset.path))}
    return {**selection, **dataset.model_dump(include={"path", "config", "split", "revision"})}


def reference(dataset: Dataset) -> dict[str, Json]:
    """Return what identifies the questions where a file can't be read: its path as given, in place of its content."""
    if dataset.is_file:
        return {"name": stem(dataset), "samples": dataset.samples, "seed": dataset.seed, "path": dataset.path}
    return fingerprint(dataset)


def load(dataset: Dataset) -> list[Sample]:
    """Read the dataset and choose `dataset.samples` of its rows, in the dataset's order.

    Raises:
        InputError: If it can't be read, lacks questions or answers, or has fewer rows than asked for.
    """
    rows = list(_rows(dataset))
    count = len(rows) if dataset.samples is None else dataset.samples
    if not rows:
        raise InputError(f"the dataset {dataset.path} has no rows")
    if count > len(rows):
        raise InputError(f"dataset.samples is {count}, but {dataset.path} has only {len(rows)} rows")
    name = stem(dataset)
    return [_sample(dataset, name, index, rows[index]) for index in _select(len(rows), count, dataset.seed)]


def _select(rows: int, count: int, seed: int) -> list[int]:
    # Ranks by `random()`, which is the same in every Python version for a seed; `sample()` is not.
    draw = random.Random(seed)
    ranks = [draw.random() for _ in range(rows)]
    return sorted(sorted(range(rows), key=ranks.__getitem__)[:count])


def _sample(dataset: Dataset, name: str, index: int, row: Mapping[str, Any]) -> Sample:
    for field in ("question", "answer"):
        if row.get(field) is None:
            fields = ", ".join(key for key, value in row.items() if value is not None)
            raise InputError(f"row {index + 1} of {dataset.path} has no field {field!r}; it has: {fields}")
    question, answer = str(row["question"]).strip(), str(row["answer"])
    if not question:
        raise InputError(f"row {index + 1} of {dataset.path}: the question is empty")
    gold = scoring.gold_answer(answer)
    if gold is None:
        raise InputError(f"row {index + 1} of {dataset.path}: no number in the answer {answer[-60:]!r}")
    return Sample(f"{name}_{index + 1:04d}", question, gold)


def _rows(dataset: Dataset) -> Iterable[Mapping[str, Any]]:
    # `datasets` takes a second to import, and most commands don't read any.
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs of an error is in the error too
    try:
        if dataset.is_file:
            if not Path(dataset.path).stat().st_size:
                return []
            kind = "json" if dataset.path.endswith(".jsonl") else "parquet"
            # Streaming reads the file in place, without network and without a copy in the user's cache.
            with TemporaryDirectory() as cache:
                stream = datasets.load_dataset(
                    kind, data_files=dataset.path, split="train", streaming=True, cache_dir=cache
                )
                return list(stream)
        datasets.disable_progress_bars()
        loaded = datasets.load_dataset(dataset.path, dataset.config, split=dataset.split, revision=dataset.revision)
        return list(loaded)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"can't read the dataset {dataset.path}: {reason}") from None
