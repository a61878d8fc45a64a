import copy
import re
from typing import Any

import pytest

from emopfx import config
from emopfx.kubernetes import jobs, names

LABELS = names.labels("nano", "emopfx", "0123456789") | {names.STAGE_LABEL: "generate"}
OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "emopfx-nano", "uid": "u1", "labels": {}}}


@pytest.fixture
def cron_job() -> dict[str, Any]:
    container = {
        "name": "generate",
        "image": "emopfx-jobs:1",
        "args": ["run", "-f", "/experiment/experiment.yaml", "--server", "http://emopfx-server:8000"],
        "volumeMounts": [{"name": "experiment", "mountPath": "/experiment"}],
    }
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "emopfx-data"}},
        {"name": "experiment", "configMap": {"name": "emopfx-experiment", "defaultMode": 420}},
    ]
    pod = {
        "metadata": {"labels": {"app.kubernetes.io/component": "generate"}},
        "spec": {"restartPolicy": "Never", "containers": [container], "volumes": volumes},
    }
    job = {
        "metadata": {"labels": {"app.kubernetes.io/instance": "emopfx"}},
        "spec": {"backoffLimit": 6, "template": pod},
    }
    return {"metadata": {"name": "emopfx-generate"}, "spec": {"suspend": True, "jobTemplate": job}}


def pod(exit_code: int | None, message: str = "", uid: str = "u2") -> dict[str, Any]:
    state = {"running": {}} if exit_code is None else {"terminated": {"exitCode": exit_code, "message": message}}
    return {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"state": state}]}}


def test_a_job_differs_from_its_template_in_name_labels_and_config_only(cron_job: dict[str, Any]) -> None:
    before = copy.deepcopy(cron_job)
    job = jobs.from_template(cron_job, name="nano-generate-01234567", run="nano", labels=LABELS, owner=OWNER)
    assert cron_job == before
    spec, expected = job["spec"], copy.deepcopy(before["spec"]["jobTemplate"]["spec"])
    expected["template"]["metadata"]["labels"] |= LABELS
    items = [{"key": "run.yaml", "path": "experiment.yaml"}]
    expected["template"]["spec"]["volumes"][1]["configMap"] = {"name": "emopfx-nano", "items": items}
    assert spec == expected
    assert job["metadata"]["labels"] == {"app.kubernetes.io/instance": "emopfx", **LABELS}
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "emopfx-nano", "uid": "u1"}
    assert job["metadata"]["ownerReferences"] == [reference]


def test_a_job_may_have_other_arguments_and_keep_the_template_s_config(cron_job: dict[str, Any]) -> None:
    job = jobs.from_template(cron_job, name="nano-delete", labels=LABELS, args=["delete"])
    pod_spec = job["spec"]["template"]["spec"]
    assert pod_spec["containers"][0]["args"] == ["delete"]
    assert pod_spec["volumes"] == cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    assert job["metadata"]["ownerReferences"] == []


def test_the_time_to_live_begins_later(cron_job: dict[str, Any]) -> None:
    cron_job["spec"]["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] = 60
    job = jobs.from_template(cron_job, name="j", run="nano", labels=LABELS, owner=OWNER)
    assert "ttlSecondsAfterFinished" not in job["spec"]
    assert job["metadata"]["annotations"] == {jobs.TTL_ANNOTATION: "60"}


def test_the_template_knows_the_server(cron_job: dict[str, Any]) -> None:
    assert jobs.server_url(cron_job) == "http://emopfx-server:8000"


@pytest.mark.parametrize(
    ("conditions", "outcome"),
    [
        (None, ("running", "")),
        ([{"type": "Suspended", "status": "True"}], ("running", "")),
        ([{"type": "Complete", "status": "True"}], ("succeeded", "")),
        ([{"type": "Failed", "status": "False", "reason": "x"}], ("running", "")),
        ([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}], ("failed", "BackoffLimitExceeded")),
        ([{"type": "Failed", "status": "True", "reason": "x", "message": "Too often"}], ("failed", "Too often")),
    ],
)
def test_outcome(conditions: list[dict[str, str]] | None, outcome: tuple[str, str]) -> None:
    assert jobs.outcome({"status": {"conditions": conditions}}) == outcome


def test_a_pod_that_refuses_its_config_says_why() -> None:
    log = "configure: tiny\nemopfx: the file says nonsense\n"
    assert jobs.refusal([pod(None), pod(1, "emopfx: no room"), pod(0)]) is None
    assert jobs.refusal([pod(1, "x"), pod(2, log)]) == "the file says nonsense"
    assert jobs.refusal([pod(2)]) == "the config was refused"
    assert jobs.last_words(pod(1, "Traceback\n  x\nValueError: y\n\n")) == "ValueError: y"


def test_names_fit() -> None:
    longest = "a" * 40
    assert names.revision("nano", "0123456789") == "nano-01234567"
    assert names.revision("a" * 31, "0123456789") == "a" * 31 + "-01234567"
    assert names.revision("a" * 25 + "-" + "b" * 9, "0123456789").startswith("a" * 25 + "-")
    assert len(names.revision(longest, "0123456789")) == 40
    assert len(names.job(longest, "generate", "0123456789")) <= 63


def test_names_that_begin_alike_have_revisions_of_their_own() -> None:
    alike = {names.revision("a" * 31 + end, "0123456789") for end in ("bc", "bd", "b", "")}
    assert len(alike) == 4
    assert all(re.fullmatch(config.NAME_PATTERN, name) for name in alike)
