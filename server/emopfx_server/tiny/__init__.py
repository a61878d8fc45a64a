"""The built-in model `tiny`: a Llama of under one million parameters that answers made-up arithmetic stories.

It exists so that the demo and the tests are real runs. Its weights are shipped in `weights/`, as
`python -m emopfx_server.tiny train` made them. Importing this package imports neither torch nor transformers.
"""

from pathlib import Path


def path() -> Path:
    """Return the folder of the shipped weights, which `from_pretrained` of transformers can load."""
    return Path(__file__).parent / "weights"
