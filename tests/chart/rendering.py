"""Renders the chart as helm would, into parsed objects.

`python -m tests.chart.rendering FOLDER` writes what comes out for each Kubernetes version and each of the ci values.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml
from helm_python import _native

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "emopfx"
# The oldest there is; one with policy/v1 and no podFailurePolicy; one with it; the newest.
KUBE_VERSIONS = ("1.20.2", "1.24.0", "1.29.0", "1.37.0")
CI_VALUES = {path.name.removesuffix("-values.yaml"): path for path in sorted(CHART.glob("ci/*-values.yaml"))}

Object = dict[str, Any]


def load(path: Path) -> Object:
    """Read a YAML file that holds one mapping."""
    content: Object = yaml.safe_load(path.read_text())
    return content


@cache
def chart() -> helm_python.Chart:
    """The chart, loaded once."""
    return helm_python.Chart.load(CHART)


def render_texts(
    values: Mapping[str, Any], kube_version: str = "1.37.0", release: str = "emopfx", namespace: str = "research"
) -> dict[str, str]:
    """Render the chart and return the text of each template by its path in the chart."""
    options = {"name": release, "namespace": namespace, "kube_version": f"v{kube_version}"}
    # Chart.render has no argument for the Kubernetes version, which the library below it takes.
    rendered = _native.call_string("helm_render", chart()._raw(), json.dumps(values), json.dumps(options))
    texts: dict[str, str] = json.loads(rendered)
    return {path.removeprefix("emopfx/templates/"): text for path, text in texts.items()}


def render(
    values: Mapping[str, Any] | None = None,
    kube_version: str = "1.37.0",
    release: str = "emopfx",
    namespace: str = "research",
) -> list[Object]:
    """Render the chart and return its objects, hooks too."""
    texts = render_texts(values or {}, kube_version, release, namespace)
    documents = [text for path, text in texts.items() if path.endswith(".yaml")]
    return [item for text in documents for item in yaml.load_all(text, yaml.CSafeLoader) if item]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of that kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def names(objects: list[Object], kind: str) -> set[str]:
    """Return the names of the objects of a kind."""
    return {item["metadata"]["name"] for item in objects if item["kind"] == kind}


def pods(objects: list[Object]) -> dict[str, Object]:
    """Return every pod, or template of one, by its component."""
    templates = [item for item in map(_pod, objects) if item is not None]
    return {item["metadata"]["labels"]["app.kubernetes.io/component"]: item for item in templates}


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions with In) matches labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(expression["key"]) in expression["values"] for expression in expressions
    )


def _pod(item: Object) -> Object | None:
    match item["kind"]:
        case "Pod":
            return item
        case "Deployment":
            template: Object = item["spec"]["template"]
        case "CronJob":
            template = item["spec"]["jobTemplate"]["spec"]["template"]
        case _:
            return None
    return template


def write(folder: Path) -> None:
    """Write the objects for each Kubernetes version and each of the ci values: FOLDER/1.37.0/cpu.yaml."""
    for version in KUBE_VERSIONS:
        for name, path in CI_VALUES.items():
            file = folder / version / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump_all(render(load(path), version)))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
