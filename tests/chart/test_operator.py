"""The operator, which is off unless asked for, and may do no more than it does."""

from tests.chart.rendering import find, names, render

EVERYTHING = {"operator": {"enabled": True}}


def test_off_by_default() -> None:
    for kind in ("Deployment", "Role", "RoleBinding", "ServiceAccount", "NetworkPolicy"):
        assert "emopfx-operator" not in names(render(), kind)
        assert "emopfx-operator" in names(render(EVERYTHING), kind)


def test_rights() -> None:
    """All that the release may do in the cluster; tests/e2e/test_watch.py shows that it is enough."""
    objects = render(EVERYTHING)
    assert names(objects, "ClusterRole") == names(objects, "ClusterRoleBinding") == set()
    assert names(objects, "Role") == {"emopfx-operator"}
    rules = find(objects, "Role", "emopfx-operator")["rules"]
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in rules)
    assert {(*rule["apiGroups"], *rule["resources"]): set(rule["verbs"]) for rule in rules} == {
        ("", "configmaps"): {"get", "list", "watch", "create", "patch"},
        ("batch", "cronjobs"): {"list"},
        ("batch", "jobs"): {"get", "create", "patch"},
        ("", "pods"): {"list"},
        ("", "pods/log"): {"get"},
        ("coordination.k8s.io", "leases"): {"get", "create", "update", "delete"},
    }


def test_only_the_operator_has_them() -> None:
    [subject] = find(render(EVERYTHING), "RoleBinding", "emopfx-operator")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "emopfx-operator", "namespace": "research"}


def test_watches_its_own_release() -> None:
    spec = find(render(EVERYTHING, release="calm"), "Deployment", "calm-emopfx-operator")["spec"]
    assert spec["template"]["spec"]["containers"][0]["args"] == ["watch", "--release", "calm"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
