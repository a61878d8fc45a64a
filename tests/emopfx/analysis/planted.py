"""Activations made up by hand, in real files: noise, and whatever is planted in it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from emopfx.analysis.activation_file import FILE, METADATA
from emopfx.analysis.answers import Answer
from emopfx.storage.files import read_range

Floats = npt.NDArray[np.float32]
PROMPT = 4
COMPLETION = 4
TOKENS = PROMPT + COMPLETION - 1
HOOK_POINT = "input_layernorm.output"


class LocalFiles:
    """Files under a folder on this disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str, /, start: int, length: int) -> bytes:
        return read_range(self.root / name, start, length)

    def size(self, name: str, /) -> int:
        return (self.root / name).stat().st_size

    def has(self, name: str, /) -> bool:
        return (self.root / name).is_file()


def write(
    root: Path, key: str, tensors: dict[str, torch.Tensor], correct: bool, positions: list[int] | None = None
) -> Answer:
    """Write one sample's activations as the server does, and return its answer."""
    variant, question = key.split("/")
    folder = root / "nano" / "activations" / key
    folder.mkdir(parents=True)
    places = list(range(TOKENS)) if positions is None else positions
    save_file({**tensors, "positions": torch.tensor(places), "token_ids": torch.tensor(places)}, folder / FILE)
    texts = [f"t{place} " for place in places]
    record = {"token_texts": texts, "prompt_tokens": PROMPT, "completion_tokens": COMPLETION}
    (folder / "metadata.json").write_text(json.dumps(record))
    contents = {name: (folder / name).read_bytes() for name in (FILE, METADATA)}
    files = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]
    return Answer(
        key=key,
        variant=variant,
        question=question,
        repeat=1,
        correct=correct,
        format=True,
        prompt_tokens=PROMPT,
        completion_tokens=COMPLETION,
        truncated=False,
        breadcrumb={"save_dir": folder.relative_to(root).as_posix(), "files": files},
    )


def experiment(
    root: Path,
    variants: list[str],
    questions: int,
    plant: Callable[[int, str, bool], Floats],
    *,
    layers: int = 3,
    width: int = 16,
    dtype: torch.dtype = torch.float32,
) -> list[Answer]:
    """Write noise for every variant and question, each question's about a centre of its own.

    Args:
        root: The data folder.
        variants: Names of the variants.
        questions: How many.
        plant: Returns what is added to all of an answer's tokens, given the layer, the variant and whether it is right.
        layers: How many.
        width: Length of the rows.
        dtype: What they are stored in.
    """
    draw = np.random.default_rng(0)
    centres = 5 * draw.normal(size=(questions, layers, width))
    answers = []
    for variant in variants:
        for number in range(questions):
            correct = bool(draw.random() < 0.5)
            tensors = {
                f"layers.{layer}.{HOOK_POINT}": torch.from_numpy(
                    (centres[number, layer] + draw.normal(size=width) + plant(layer, variant, correct))
                    + 0.1 * draw.normal(size=(TOKENS, width))
                ).to(dtype)
                for layer in range(layers)
            }
            answers.append(write(root, f"{variant}/q_{number:04d}", tensors, correct))
    return answers
