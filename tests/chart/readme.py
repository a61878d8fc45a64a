"""The table of values in the chart's README, made from the comments in values.yaml (`# -- …`, as helm-docs reads them).

`make chart-readme` writes it.
"""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import yaml

from tests.chart.rendering import CHART

README = CHART / "README.md"
VALUES = CHART / "values.yaml"
HEADING = "## Values\n"
TYPES = {"str": "string", "int": "int", "bool": "bool", "seq": "list", "map": "object", "null": "null"}


class Value(NamedTuple):
    """One key of values.yaml: its path, its default, and what the comment above it says (empty if there is none)."""

    path: str
    type: str
    default: object
    description: str


def values() -> Iterator[Value]:
    """Yield every key of values.yaml in its order, mappings before their own keys."""
    text = VALUES.read_text()
    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from _values(root, text.splitlines(), "")


def _values(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[Value]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        default = yaml.safe_load(yaml.serialize(value))
        given, description = _comment(lines, key.start_mark.line)
        yield Value(path, given or TYPES[value.tag.rpartition(":")[2]], default, description)
        if isinstance(value, yaml.MappingNode):
            yield from _values(value, lines, f"{path}.")


def _comment(lines: list[str], line: int) -> tuple[str, str]:
    """Return the type, if one is given, and the description in the comment that ends above a line."""
    comment: list[str] = []
    while line > 0 and (match := re.match(r" *# ?(.*)", lines[line - 1])):
        comment.insert(0, match[1])
        line -= 1
    start = next((index for index in reversed(range(len(comment))) if comment[index].startswith("-- ")), None)
    if start is None:
        return "", ""
    found = re.match(r"-- (?:\((\w+)\) )?(.*)", " ".join(comment[start:]))
    assert found
    return found[1] or "", found[2]


def table() -> str:
    """Return the table: every key that has a description."""
    rows = [
        f"| `{path}` | {kind} | `{json.dumps(default)}` | {text} |" for path, kind, default, text in values() if text
    ]
    return "\n".join(["| Key | Type | Default | Description |", "| --- | --- | --- | --- |", *rows, ""])


def readme() -> str:
    """Return the README with its table as it should be."""
    before, heading, _ = README.read_text().partition(HEADING)
    return f"{before}{heading}\n{table()}"


if __name__ == "__main__":
    README.write_text(readme())
