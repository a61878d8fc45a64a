"""The chart with each of its ci values, for each Kubernetes version that renders differently."""

from typing import NamedTuple

import pytest

from tests.chart.rendering import CI_VALUES, KUBE_VERSIONS, Object, load, render


class Rendered(NamedTuple):
    """What came out: the values' name, the values, the Kubernetes version, and the objects."""

    name: str
    values: Object
    kube_version: str
    objects: list[Object]


@pytest.fixture(scope="session", params=[f"{name} {version}" for name in CI_VALUES for version in KUBE_VERSIONS])
def rendered(request: pytest.FixtureRequest) -> Rendered:
    name, version = request.param.split()
    values = load(CI_VALUES[name])
    return Rendered(name, values, version, render(values, version))
