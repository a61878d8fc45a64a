"""The questions: read from the Hugging Face hub or a file, chosen by seed, and named."""

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
    rows = _rows(dataset)
    count = len(rows) if dataset.samples is None else dataset.samples
    if not rows:
        raise InputError(f"the dataset {dataset.path} has no rows")
    if count > len(rows):
        raise InputError(f"dataset.samples is {count}, but {dataset.path} has only {len(rows)} rows")
    name = stem(dataset)
    return [
        _sample(f"{name}_{index + 1:04d}", *rows[index], dataset.path)
        for index in _select(len(rows), count, dataset.seed)
    ]


def _select(rows: int, count: int, seed: int) -> list[int]:
    # Ranks by `random()`, which is the same in every Python version for a seed; `sample()` is not.
    draw = random.Random(seed)
    ranks = [draw.random() for _ in range(rows)]
    return sorted(sorted(range(rows), key=ranks.__getitem__)[:count])


def _sample(sample_id: str, where: str, row: Mapping[str, Any], path: str) -> Sample:
    for field in ("question", "answer"):
        value = row.get(field)
        if value is None:
            fields = ", ".join(key for key, value in row.items() if value is not None)
            raise InputError(f"{where} of {path} has no field {field!r}; it has: {fields}")
        if not isinstance(value, str):
            raise InputError(f"{where} of {path}: the field {field!r} must be a text, got {str(value)[:60]}")
    question, answer = row["question"].strip(), row["answer"]
    if not question:
        raise InputError(f"{where} of {path}: the question is empty")
    gold = scoring.gold_answer(answer)
    if gold is None:
        raise InputError(f"{where} of {path}: no number in the answer {answer[-60:]!r}")
    return Sample(sample_id, question, gold)


def _rows(dataset: Dataset) -> list[tuple[str, Mapping[str, Any]]]:
    """Return all rows, each with the words for where it stands."""
    try:
        if dataset.path.lower().endswith(".jsonl"):
            return list(_lines(Path(dataset.path)))
        rows = _parquet_rows(Path(dataset.path)) if dataset.is_file else _hub_rows(dataset)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"can't read the dataset {dataset.path}: {reason}") from None
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)]


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Read here and not by `datasets`, which guesses types (of dates, say), and fails on lines that are no objects.
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # Half of a surrogate pair is JSON, but no text.
            json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} of {path} is not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"line {number} of {path} must be an object with question and answer, got {str(row)[:60]}")
        yield f"line {number}", row


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    # Takes a while to import.
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    # An open file, because a path could be taken for a pattern.
    with path.open("rb") as file:
        try:
            rows: list[dict[str, Any]] = parquet.ParquetFile(file).read().to_pylist()
        except ArrowException as error:
            raise ValueError(str(error)) from None
    return rows


def _hub_rows(dataset: Dataset) -> list[dict[str, Any]]:
    # Takes a second to import, and most commands don't read any.
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it logs of an error is in the error too
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(dataset.path, dataset.config, split=dataset.split, revision=dataset.revision)
    except datasets.exceptions.DatasetsError as error:
        raise ValueError(str(error)) from None
    return list(loaded)
