"""A run that keeps what it makes in S3: moto's server, in the cluster as a Deployment."""

import json
from pathlib import Path

import pytest

from tests.e2e.namespace import Namespace, Object, chart_values, wait_until
from tests.e2e.runs import bring_here, check_whole, config, emopfx, fingerprint, states

# Built from s3.Dockerfile.
IMAGE = "localhost/emopfx-s3:dev"
LABELS = {"app": "s3"}
KEYS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret-that-stays-secret"}
SCRIPT = """
import boto3, hashlib, json
client = boto3.client("s3", endpoint_url="http://127.0.0.1:5000", region_name="us-east-1")
found = {}
for page in client.get_paginator("list_objects_v2").paginate(Bucket="kept"):
    for item in page.get("Contents", []):
        content = client.get_object(Bucket="kept", Key=item["Key"])["Body"].read()
        found[item["Key"]] = hashlib.sha256(content).hexdigest()
print(json.dumps(found))
"""


def service() -> list[Object]:
    """The objects of an S3 service named s3."""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "s3",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": name, "value": value} for name, value in KEYS.items()],
        "ports": [{"containerPort": 5000}],
        "readinessProbe": {"tcpSocket": {"port": 5000}},
        "securityContext": security,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    metadata = {"name": "s3", "labels": LABELS}
    template = {"metadata": {"labels": LABELS}, "spec": pod}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "object-store"}, "stringData": KEYS},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": LABELS, "ports": [{"port": 5000}]},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"selector": {"matchLabels": LABELS}, "template": template},
        },
    ]


@pytest.fixture(scope="module")
def store(namespace: Namespace) -> str:
    """The name of the pod of an S3 service with an empty bucket."""
    for item in service():
        namespace.create(item)
    pod = str(wait_until("there is a pod", lambda: namespace.find("Pod", "app=s3"))[0]["metadata"]["name"])
    namespace.wait_ready(pod)
    make = (
        "boto3.client('s3', endpoint_url='http://127.0.0.1:5000', region_name='us-east-1').create_bucket(Bucket='kept')"
    )
    assert namespace.shell(pod, f'python -c "import boto3; {make}"') == ""
    return pod


def test_what_a_run_makes_is_in_the_bucket_when_its_jobs_are_done(
    namespace: Namespace, store: str, tmp_path: Path
) -> None:
    s3 = {
        "enabled": True,
        "existingSecret": "object-store",
        "endpointUrl": "http://s3:5000",
        "region": "us-east-1",
        "egressTo": [{"podSelector": {"matchLabels": LABELS}}],
    }
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps({**chart_values("cpu"), "s3": s3}))
    file = config(tmp_path, storage={"s3": {"uri": "s3://kept/runs", "push": "continuous"}})
    code, out = emopfx(namespace, tmp_path, "run", "-f", str(file), "--values", str(values))
    assert code == 0, out
    assert states(namespace, "nano")["analyze"] == "succeeded"
    assert "push: 0 files sent, 128 were there" in out

    layout = bring_here(namespace, tmp_path, "nano")
    check_whole(layout, 64)
    here = {f"runs/{path}": sha256 for path, sha256 in fingerprint(layout).items() if not path.endswith("/.lock")}
    assert json.loads(namespace.shell(store, f"python -c '{SCRIPT}'")) == here
    secret = KEYS["AWS_SECRET_ACCESS_KEY"]
    assert secret not in out
    assert not any(secret.encode() in path.read_bytes() for path in layout.folder.rglob("*") if path.is_file())
