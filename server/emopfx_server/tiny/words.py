"""The words of `words.txt`, which the model `tiny` knows beside those of the stories' templates."""

from functools import cache
from importlib.resources import files


@cache
def sections() -> dict[str, list[str]]:
    """Return the words of `words.txt` by the heading (`# …`) that they stand under."""
    found: dict[str, list[str]] = {}
    for line in files(__package__).joinpath("words.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            found[line[2:]] = words = []
        else:
            words += line.split()
    return found


def everyday_words() -> list[str]:
    """Return all words of `words.txt`, in its order."""
    return [word for words in sections().values() for word in words]
