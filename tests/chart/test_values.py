"""values.yaml: every value is described and checked, and values that can't go together are refused."""

import copy
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest

from tests.chart import readme
from tests.chart.rendering import CI_VALUES, Object, chart, find, load, render

# What is a user's own to name: labels and the like, quantities by resource, the experiment (emopfx checks it), and
# `global`, which charts above this one set.
FREE = {
    *("annotations", "serviceAnnotations", "podAnnotations", "podLabels", "labels", "nodeSelector"),
    *("requests", "limits", "experiment", "seccompProfile", "global"),
}
ITEMS: dict[str, Object] = {
    "imagePullSecrets": {"name": "registry"},
    "extraEnv": {"name": "A"},
    "extraEnvFrom": {"secretRef": {"name": "keys"}},
    "extraVolumeMounts": {"name": "more", "mountPath": "/more"},
    "extraVolumes": {"name": "more", "emptyDir": {}},
    "tolerations": {"key": "dedicated"},
    "topologySpreadConstraints": {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"},
    "extraIngressFrom": {"podSelector": {}},
    "extraEgress": {"to": []},
}


def mappings(values: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every mapping in values whose keys are the chart's."""
    yield path
    for key, value in values.items():
        if isinstance(value, dict) and key not in FREE:
            yield from mappings(value, (*path, key))


def lists(values: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every list of mappings in values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from lists(value, (*path, key))
        elif key in ITEMS:
            yield *path, key


def changed(path: tuple[str, ...], value: Any) -> Object:
    """Values that have one value under a path."""
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def refusal(values: Object) -> str:
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    return str(refused.value)


DEFAULTS = chart().values


@pytest.mark.parametrize("path", list(mappings(DEFAULTS)), ids=".".join)
def test_a_typo_is_refused(path: tuple[str, ...]) -> None:
    assert "tpyo" in refusal(changed((*path, "tpyo"), 1))


@pytest.mark.parametrize("path", list(lists(DEFAULTS)), ids=".".join)
def test_a_typo_in_a_list_is_refused(path: tuple[str, ...]) -> None:
    item = ITEMS[path[-1]]
    chart().validate_schema(changed(path, [item]))
    with pytest.raises(helm_python.HelmValuesError):
        chart().validate_schema(changed(path, [{**item, "tpyo": 1}]))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.dtype", "float16"),
        ("model.name", ""),
        ("image.server.digest", "sha256:12"),
        ("image.jobs.pullPolicy", "Sometimes"),
        ("gpu.count", 0),
        ("gpu.resourceName", "gpu"),
        ("persistence.size", "a lot"),
        ("persistence.accessModes", ["ReadOnlyMany"]),
        ("server.replicas", -1),
        ("server.resources.limits.memory", "16 GB"),
        ("server.podLabels.team", 7),
        ("jobs.generate.backoffLimit", "6"),
        ("jobs.kueue.queueName", "Not_A_Name"),
        ("networkPolicy.apiServerPorts", [70000]),
        ("fullnameOverride", "2nd.release"),
        ("serviceMonitor.interval", "often"),
        ("experiment", {"samples": 8}),
    ],
)
def test_a_wrong_value_is_refused(path: str, value: object) -> None:
    refused = refusal(changed(tuple(path.split(".")), value))
    assert f"/{path.split('.')[0]}" in refused


def test_several_servers_need_a_shared_claim() -> None:
    assert 'server.replicas is 2, but persistence.accessModes is ["ReadWriteOnce"]' in refusal(
        {"server": {"replicas": 2}}
    )
    both = {"server": {"replicas": 2}, "persistence": {"accessModes": ["ReadWriteMany"]}}
    assert find(render(both), "Deployment", "emopfx-server")["spec"]["replicas"] == 2


def test_draining_needs_more_time_than_waiting_for_it() -> None:
    refused = refusal({"server": {"preStopSeconds": 60, "terminationGracePeriodSeconds": 60}})
    assert "server.preStopSeconds is 60, but server.terminationGracePeriodSeconds is 60" in refused


def test_kueue_needs_suspended_jobs() -> None:
    with pytest.raises(helm_python.HelmError, match=r"needs suspended Jobs.* since 1\.22; this cluster has v1\.20\.2"):
        render({"jobs": {"kueue": {"queueName": "emopfx"}}}, "1.20.2")


@pytest.mark.parametrize("name", CI_VALUES)
def test_ci_values_fit_the_schema(name: str) -> None:
    chart().validate_schema(load(CI_VALUES[name]))


def test_every_value_is_described() -> None:
    described: set[str] = set()
    for value in readme.values():
        parents = {value.path[:end] for end, letter in enumerate(value.path) if letter == "."}
        if value.description or parents & described:
            described.add(value.path)
        else:
            assert isinstance(value.default, dict), f"{value.path} has no comment '# -- …'"
            assert value.default, f"{value.path} has no comment '# -- …'"


def test_the_readme_has_every_value() -> None:
    assert readme.README.read_text() == readme.readme(), "stale: make chart-readme"


def test_the_schema_knows_every_value() -> None:
    """A key that values.yaml has lost would still be accepted, and do nothing."""
    schema = copy.deepcopy(chart().schema)
    assert schema is not None
    definitions = schema["definitions"]
    for path in mappings(DEFAULTS):
        level, defaults = schema, DEFAULTS
        for key in path:
            level, defaults = level["properties"][key], defaults[key]
            if "$ref" in level:
                level = definitions[level["$ref"].rpartition("/")[2]]
        if path and path[-1] in ("affinity", "podSecurityContext", "containerSecurityContext", "capabilities"):
            continue
        assert level["properties"].keys() - {"global"} == defaults.keys(), path
