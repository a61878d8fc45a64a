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
    "egressTo": {"podSelector": {}},
}
# Kubernetes' own, of which a user may leave out any part.
OPEN = ("affinity", "resources", "podSecurityContext", "containerSecurityContext", "capabilities")
PARTS = ("requests", "limits", "podSecurityContext", "containerSecurityContext", "labels")


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
    assert render(changed(path, [item]))
    assert f"at '/{'/'.join(path)}/0'" in refusal(changed(path, [{**item, "tpyo": 1}]))


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
        ("podDisruptionBudget.minAvailable", "abc"),
        ("podDisruptionBudget.minAvailable", ""),
        ("podDisruptionBudget.minAvailable", "101%"),
        ("image.server.tag", "a b"),
        ("image.server.tag", "-a"),
        ("server.podLabels", {"team": "a b"}),
        ("server.podLabels", {"a b": "team"}),
        ("server.podLabels", {"team": "a" * 64}),
        ("jobs.podLabels", {"app.kubernetes.io/component": "server"}),
        ("operator.podLabels", {"app.kubernetes.io/name": "mine"}),
        ("serviceMonitor.labels", {"app.kubernetes.io/instance": "mine"}),
        ("jobs.podLabels", {"emopfx.dev/stage": "mine"}),
        ("server.podAnnotations", {"a b": "c"}),
        ("persistence.annotations", {"helm.sh/resource-policy": "delete"}),
        ("server.nodeSelector", {"pool": "a/b"}),
        ("persistence.existingClaim", "a..b"),
        ("persistence.existingClaim", "a/b"),
        ("cache.existingClaim", "A"),
        ("jobs.kueue.queueName", "a" * 64),
        ("persistence.size", "0"),
        ("persistence.size", "0Gi"),
        ("persistence.size", "0e5"),
        ("server.shmSizeLimit", "0.0Gi"),
        ("cache.sizeLimit", "00"),
        ("server.tolerations", [{"key": "a", "operator": "Exist"}]),
        ("networkPolicy.dnsPorts", [0]),
        ("s3.ports", ["9000"]),
        ("podSecurityContext.supplementalGroupsPolicy", "Both"),
    ],
)
def test_a_wrong_value_is_refused(path: str, value: object) -> None:
    refused = refusal(changed(tuple(path.split(".")), value))
    assert f"/{path.split('.')[0]}" in refused


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("persistence.size", "1Ei"),
        ("persistence.size", "5e10"),
        ("persistence.size", "1.5E3"),
        ("persistence.size", "0.5Ti"),
        ("persistence.accessModes", ["ReadWriteOncePod"]),
        ("persistence.existingClaim", "team.data-1"),
        ("podDisruptionBudget.minAvailable", "50%"),
        ("podSecurityContext.supplementalGroupsPolicy", "Strict"),
        ("server.resources.claims", [{"name": "gpu", "request": "one"}]),
        ("server.resources.limits.cpu", "0"),
        ("server.podLabels", {"app.kubernetes.io/part-of": "research", "team.example/a_b": "A.b-c"}),
        ("server.tolerations", [{"operator": "Exists"}]),
    ],
)
def test_a_right_value_is_taken(path: str, value: object) -> None:
    assert render(changed(tuple(path.split(".")), value))


@pytest.mark.parametrize("value", list(readme.values()), ids=lambda value: value.path)
def test_null_is_the_empty_default_or_refused(value: readme.Value) -> None:
    """With null, Helm takes a key away."""
    path = tuple(value.path.split("."))
    if set(path[:-1]) & set(PARTS) or path[-1] in ("requests", "limits"):
        assert render(changed(path, None))
    elif value.default in ("", [], {}, None):
        assert render(changed(path, None)) == render()
    else:
        assert f"'{path[-1]}'" in refusal(changed(path, None)).partition("missing propert")[2]


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
    assert render(load(CI_VALUES[name]))


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
        if path and path[-1] in OPEN:
            continue
        assert level["properties"].keys() - {"global"} == defaults.keys(), path
