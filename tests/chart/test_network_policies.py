"""Who may talk to whom: only the Jobs, the operator and the test reach the server, and each pod only what it needs."""

from typing import Any

import pytest

from emopfx.kubernetes import jobs
from tests.chart.conftest import Rendered
from tests.chart.rendering import Object, find, names, pods, render, selects

DNS, HTTPS, API = {53, 5353}, {443}, {443, 6443, 8443}
EVERYTHING = {"operator": {"enabled": True}}


def policies(objects: list[Object], labels: dict[str, str]) -> list[Object]:
    """The policies that select a pod."""
    found = [item["spec"] for item in objects if item["kind"] == "NetworkPolicy"]
    return [policy for policy in found if selects(policy["podSelector"], labels)]


def reachable(objects: list[Object], component: str) -> dict[str, set[int]]:
    """The ports that a component's pods reach: of the server's pods, and of anybody."""
    [policy] = policies(objects, pods(objects)[component]["metadata"]["labels"])
    server = pods(objects)["server"]["metadata"]["labels"]
    found: dict[str, set[int]] = {"server": set(), "anybody": set()}
    for rule in policy["egress"]:
        ports = {port["port"] for port in rule["ports"]}
        if "to" not in rule:
            found["anybody"] |= ports
        elif any(selects(peer["podSelector"], server) for peer in rule["to"] if "podSelector" in peer):
            found["server"] |= ports
    return found


def admitted(objects: list[Object], labels: dict[str, str]) -> bool:
    """Whether a pod of the same namespace with these labels may ask the server."""
    [policy] = policies(objects, pods(objects)["server"]["metadata"]["labels"])
    [rule] = policy["ingress"]
    assert rule["ports"] == [{"port": 8000, "protocol": "TCP"}]
    return any(selects(peer["podSelector"], labels) for peer in rule["from"] if "podSelector" in peer)


def test_every_pod_has_one_policy(rendered: Rendered) -> None:
    for pod in pods(rendered.objects).values():
        [policy] = policies(rendered.objects, pod["metadata"]["labels"])
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    # A policy without pods would only be a riddle.
    labels = [pod["metadata"]["labels"] for pod in pods(rendered.objects).values()]
    for item in rendered.objects:
        if item["kind"] == "NetworkPolicy":
            assert any(selects(item["spec"]["podSelector"], found) for found in labels)


def test_nobody_reaches_other_pods_than_the_servers(rendered: Rendered) -> None:
    for item in rendered.objects:
        if item["kind"] == "NetworkPolicy" and not item["metadata"]["name"].endswith("-server"):
            # An empty list would be dropped by the API server, and then be in conflict with what was applied.
            assert "ingress" not in item["spec"]


def test_who_reaches_the_server() -> None:
    objects = render(EVERYTHING)
    found = {name: pod["metadata"]["labels"] for name, pod in pods(objects).items()}
    assert {name for name, labels in found.items() if admitted(objects, labels)} == {"generate", "operator", "test"}
    assert not admitted(objects, {})
    assert not admitted(objects, {**found["generate"], "app.kubernetes.io/instance": "another"})


def test_ports_may_be_those_of_a_cluster_s_own_pods() -> None:
    """A Service's port is replaced by its pods' before a policy is enforced."""
    s3 = {"enabled": True, "endpointUrl": "http://minio.storage", "ports": [9000, 9001]}
    objects = render({"networkPolicy": {"dnsPorts": [1053], "apiServerPorts": [16443]}, "s3": s3, **EVERYTHING})
    assert reachable(objects, "operator") == {"server": {8000}, "anybody": {1053, 16443}}
    assert reachable(objects, "analyze") == {"server": set(), "anybody": {1053, 443, 9000, 9001}}


def test_monitoring_may_be_let_in() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    objects = render({"networkPolicy": {"extraIngressFrom": [peer]}})
    assert peer in find(objects, "NetworkPolicy", "emopfx-server")["spec"]["ingress"][0]["from"]


@pytest.mark.parametrize(
    ("hub", "expected"),
    [
        (
            True,
            {
                "server": {"server": set(), "anybody": DNS | HTTPS},
                "generate": {"server": {8000}, "anybody": DNS | HTTPS},
                "analyze": {"server": set(), "anybody": DNS | HTTPS},
                "operator": {"server": {8000}, "anybody": DNS | API},
                "test": {"server": {8000}, "anybody": DNS},
            },
        ),
        (
            False,
            {
                "server": {"server": set(), "anybody": DNS},
                "generate": {"server": {8000}, "anybody": DNS},
                "analyze": {"server": set(), "anybody": DNS},
                "operator": {"server": {8000}, "anybody": DNS | API},
                "test": {"server": {8000}, "anybody": DNS},
            },
        ),
    ],
    ids=["hub", "no hub"],
)
def test_what_each_pod_reaches(hub: bool, expected: dict[str, Any]) -> None:
    objects = render({**EVERYTHING, "networkPolicy": {"allowHub": hub}})
    assert {name: reachable(objects, name) for name in pods(objects)} == expected


def test_every_pod_may_be_let_out() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "10.0.0.7/32"}}], "ports": [{"port": 3128, "protocol": "TCP"}]}
    objects = render({**EVERYTHING, "networkPolicy": {"extraEgress": [rule]}})
    found = [item["spec"]["egress"] for item in objects if item["kind"] == "NetworkPolicy"]
    assert len(found) == 5
    assert all(rule in egress for egress in found)


@pytest.mark.parametrize("stage", ["generate", "analyze"])
def test_a_job_made_of_a_template_has_its_policy(stage: str) -> None:
    """Also the one that deletes results, which has arguments and labels of its own."""
    objects = render()
    template = find(objects, "CronJob", f"emopfx-{stage}")
    job = jobs.from_template(template, name="calm-delete", labels={"emopfx.dev/stage": "delete"}, args=["delete"])
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert policies(objects, labels) == [find(objects, "NetworkPolicy", f"emopfx-{stage}")["spec"]]


def test_none_if_not_wanted() -> None:
    assert names(render({"networkPolicy": {"enabled": False}}), "NetworkPolicy") == set()
