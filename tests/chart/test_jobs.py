"""The suspended CronJobs, of which Jobs are made."""

from typing import Any

import pytest
import yaml

from emopfx import cluster_config
from emopfx.kubernetes import jobs as emopfx_jobs
from tests.chart.rendering import CI_VALUES, Object, find, load, pods, render

STAGES = ("generate", "analyze")
SHARED = {"persistence": {"accessModes": ["ReadWriteMany"]}}


def job(values: Object, stage: str = "generate", kube_version: str = "1.37.0") -> Object:
    """What a stage's CronJob makes Jobs of."""
    template: Object = find(render(values, kube_version), "CronJob", f"emopfx-{stage}")["spec"]["jobTemplate"]
    return template


def pod(values: Object, stage: str = "generate") -> Object:
    spec: Object = job(values, stage)["spec"]["template"]["spec"]
    return spec


def required(affinity: Object) -> list[Any]:
    return list(affinity.get("podAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", []))


@pytest.mark.parametrize("stage", STAGES)
def test_never_run_by_themselves(stage: str) -> None:
    spec = find(render(), "CronJob", f"emopfx-{stage}")["spec"]
    assert spec["suspend"] is True
    assert job({}, stage)["spec"].get("suspend", False) is False


@pytest.mark.parametrize("stage", STAGES)
def test_limits(stage: str) -> None:
    spec = job({}, stage)["spec"]
    assert spec["backoffLimit"] >= 3
    assert spec["activeDeadlineSeconds"] >= 86400
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert "ttlSecondsAfterFinished" not in spec
    assert job({"jobs": {"ttlSecondsAfterFinished": 60}}, stage)["spec"]["ttlSecondsAfterFinished"] == 60


@pytest.mark.parametrize("stage", STAGES)
def test_a_disruption_does_not_count_and_a_bad_config_fails_at_once(stage: str) -> None:
    ignore, fail = job({}, stage, "1.29.0")["spec"]["podFailurePolicy"]["rules"]
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert fail["action"] == "FailJob"
    [container] = pod({}, stage)["containers"]
    codes = [emopfx_jobs.BAD_INPUT_EXIT]
    assert fail["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": codes}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("kube_version", "there"), [("1.28.15", False), ("1.29.0", True)])
def test_the_pod_failure_policy_is_left_out_where_it_is_not_taken(stage: str, kube_version: str, there: bool) -> None:
    assert ("podFailurePolicy" in job({}, stage, kube_version)["spec"]) is there


@pytest.mark.parametrize("stage", STAGES)
def test_follow_the_server_to_the_node_that_holds_the_claim(stage: str) -> None:
    [term] = required(pod({}, stage)["affinity"])
    server = pods(render())["server"]["metadata"]["labels"]
    assert term == {"labelSelector": {"matchLabels": server}, "topologyKey": "kubernetes.io/hostname"}
    tolerated = {entry["key"] for entry in pod({}, stage)["tolerations"]}
    assert tolerated == {"nvidia.com/gpu"}


@pytest.mark.parametrize("stage", STAGES)
def test_run_anywhere_on_a_shared_claim(stage: str) -> None:
    assert "affinity" not in pod(SHARED, stage)
    assert "tolerations" not in pod(SHARED, stage)


def test_follow_nobody_when_no_server_runs() -> None:
    assert "affinity" not in pod({"server": {"replicas": 0}})


def test_the_users_affinity_stays() -> None:
    term = {"labelSelector": {"matchLabels": {"near": "me"}}, "topologyKey": "zone"}
    anti = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}
    pod_affinity = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    own = {"podAntiAffinity": anti, "podAffinity": pod_affinity}
    assert pod({**SHARED, "jobs": {"affinity": own}})["affinity"] == own
    both = pod({"jobs": {"affinity": own}})["affinity"]
    assert both["podAntiAffinity"] == anti
    assert len(required(both)) == 2
    assert term in required(both)


def test_tolerate_what_the_server_does_if_they_follow_it() -> None:
    taint = {"key": "dedicated", "operator": "Exists"}
    assert taint in pod({"server": {"tolerations": [taint]}})["tolerations"]
    assert "tolerations" not in pod({"server": {"tolerations": [taint]}, **SHARED})


@pytest.mark.parametrize("stage", STAGES)
def test_kueue(stage: str) -> None:
    assert "kueue.x-k8s.io/queue-name" not in job({}, stage)["metadata"]["labels"]
    queued = job({"jobs": {"kueue": {"queueName": "research"}}}, stage)
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert queued["spec"]["suspend"] is True
    # The queue's label and the suspension reach the Jobs that emopfx makes.
    cron_job = find(render({"jobs": {"kueue": {"queueName": "research"}}}), "CronJob", f"emopfx-{stage}")
    made = emopfx_jobs.from_template(cron_job, name="calm", labels={})
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert made["spec"]["suspend"] is True


def test_ask_the_server_by_its_service() -> None:
    objects = render(release="calm")
    assert emopfx_jobs.server_url(find(objects, "CronJob", "calm-emopfx-generate")) == "http://calm-emopfx-server:8000"
    assert find(objects, "Service", "calm-emopfx-server")["spec"]["ports"][0]["port"] == 8000


@pytest.mark.parametrize("name", CI_VALUES)
def test_the_experiment_of_jobs_made_by_hand_is_right(name: str) -> None:
    values = load(CI_VALUES[name])
    text = find(render(values), "ConfigMap", "emopfx-experiment")["data"]["experiment.yaml"]
    experiment = cluster_config.read(text, "experiment.yaml")
    [server] = pods(render(values))["server"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in server["env"]}
    assert environment["EMOPFX_MODEL"] == experiment.model.name
    assert environment["EMOPFX_DTYPE"] == experiment.model.dtype
    assert experiment.name == values.get("experiment", {}).get("name", "by-hand")


@pytest.mark.parametrize("stage", STAGES)
def test_a_changed_experiment_changes_the_template(stage: str) -> None:
    def annotations(values: Object) -> Object:
        found: Object = job(values, stage)["spec"]["template"]["metadata"]["annotations"]
        return found

    assert annotations({}) == annotations({"server": {"maxBatchSize": 3}})
    assert annotations({}) != annotations({"experiment": {"name": "calm"}})


def test_secrets_and_settings_of_the_user() -> None:
    values = {
        "huggingFace": {"existingSecret": "hub", "secretKey": "key"},
        "jobs": {
            "extraEnv": [{"name": "A", "value": "1"}],
            "extraEnvFrom": [{"secretRef": {"name": "keys"}}],
            "extraVolumes": [{"name": "more", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
            "nodeSelector": {"pool": "batch"},
            "priorityClassName": "low",
            "runtimeClassName": "gvisor",
        },
        "imagePullSecrets": [{"name": "registry"}],
    }
    for stage in STAGES:
        spec = pod(values, stage)
        [container] = spec["containers"]
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "key"}}
        assert environment["A"]["value"] == "1"
        assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
        assert {"name": "more", "mountPath": "/more"} in container["volumeMounts"]
        assert {"name": "more", "emptyDir": {}} in spec["volumes"]
        assert spec["nodeSelector"] == {"pool": "batch"}
        assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("low", "gvisor")
        assert spec["imagePullSecrets"] == [{"name": "registry"}]


def test_the_example_for_kueue_uses_the_queue_that_it_makes() -> None:
    folder = CI_VALUES["cpu"].parents[3] / "manifests" / "kueue"
    flavor, cluster_queue, local_queue = yaml.safe_load_all((folder / "queues.yaml").read_text())
    made = job(load(folder / "values.yaml"))
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local_queue["metadata"]["name"]
    assert local_queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    [group] = cluster_queue["spec"]["resourceGroups"]
    [quotas] = group["flavors"]
    assert quotas["name"] == flavor["metadata"]["name"]
    requests = made["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert set(group["coveredResources"]) == {quota["name"] for quota in quotas["resources"]} == requests.keys()
