"""The operator: what is applied as a ConfigMap is run, by a Deployment with no more rights than its Role's."""

import re
from pathlib import Path
from typing import Any

import kubernetes
import pytest

from tests.e2e.namespace import Namespace, chart_values, new_namespace, wait_until
from tests.e2e.runs import bring_here, check_whole, config, emopfx, jobs, record, states
from tests.e2e.test_faults import ANSWERS, MORE_ANSWERS, SLOW, SLOWER, half_done

RUN_SECONDS = 300
KILL = "for p in /proc/[0-9]*; do [ ${p#/proc/} = 1 ] || ! grep -q '[e]mopfx' $p/cmdline || kill -9 ${p#/proc/}; done"


@pytest.fixture(scope="module", autouse=True)
def operator(namespace: Namespace) -> None:
    namespace.install({**chart_values("cpu"), "operator": {"enabled": True}})
    namespace.wait_server()


def apply(namespace: Namespace, name: str, file: Path) -> None:
    """Apply a config as a ConfigMap, as kubectl does."""
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"emopfx.dev/experiment": file.stem}},
        "data": {"experiment.yaml": file.read_text()},
    }
    resource = namespace.dynamic.resources.get(api_version="v1", kind="ConfigMap")
    resource.server_side_apply(body=body, namespace=namespace.name, field_manager="somebody", force_conflicts=True)


def wait_done(namespace: Namespace, run: str) -> None:
    def done() -> bool:
        found = namespace.get("ConfigMap", f"emopfx-{run}")
        data = found["data"] if found else {}
        assert '"failed"' not in data.get("stages.json", "")
        return "summary.json" in data and set(states(namespace, run).values()) == {"succeeded"}

    wait_until(f"{run} is done", done, RUN_SECONDS)


def test_runs_what_is_applied_and_a_change_beside_it(namespace: Namespace, tmp_path: Path) -> None:
    apply(namespace, "emopfx-applied", config(tmp_path, "applied", **SLOW))
    wait_until("answers are there", lambda: half_done(namespace, "applied"))
    changed = config(tmp_path, "applied", generation={"seed": 7})
    apply(namespace, "emopfx-applied", changed)
    run = wait_until("the change has a run", lambda: _revision(namespace, "applied"))
    wait_done(namespace, "applied")
    wait_done(namespace, run)
    assert len(jobs(namespace, "applied")) == len(jobs(namespace, run)) == 2
    check_whole(bring_here(namespace, tmp_path, "applied"), ANSWERS)
    check_whole(bring_here(namespace, tmp_path, run), 64)
    found = record(namespace, "applied")
    assert found["experiment.yaml"] == changed.read_text()
    assert found["run.yaml"] != changed.read_text()


def test_killed_while_it_waits(namespace: Namespace, tmp_path: Path) -> None:
    apply(namespace, "a-request", config(tmp_path, "waited", **SLOW))
    wait_until("answers are there", lambda: half_done(namespace, "waited"))
    (pod,) = namespace.pods("operator")
    namespace.shell(pod["metadata"]["name"], KILL)
    wait_until("it was started again", lambda: _restarts(namespace) == 1)
    wait_done(namespace, "waited")
    assert len(jobs(namespace, "waited")) == 2
    check_whole(bring_here(namespace, tmp_path, "waited"), ANSWERS)


def test_a_command_follows_what_the_operator_runs(namespace: Namespace, tmp_path: Path) -> None:
    file = config(tmp_path, "followed", **SLOWER)
    apply(namespace, "emopfx-followed", file)
    wait_until("answers are there", lambda: half_done(namespace, "followed"))
    code, out = emopfx(namespace, tmp_path, "run", "-f", str(file))
    assert code == 0, out
    assert "followed: the operator in the cluster works on it; this follows it" in out
    assert set(states(namespace, "followed").values()) == {"succeeded"}
    assert len(jobs(namespace, "followed")) == 2
    check_whole(bring_here(namespace, tmp_path, "followed"), MORE_ANSWERS)


def test_a_server_that_asks_for_a_key(client: kubernetes.client.ApiClient, tmp_path: Path) -> None:
    key = {"existingSecret": "door", "secretKey": "key"}
    with new_namespace(client) as own:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "door"}, "stringData": {"key": "open"}}
        own.create(secret)
        own.install({**chart_values("cpu"), "apiKey": key, "operator": {"enabled": True}})
        own.wait_server()
        apply(own, "emopfx-locked", config(tmp_path, "locked", dataset={"samples": 1}))
        wait_done(own, "locked")
        code, out = emopfx(own, tmp_path, "fetch", "--name", "locked")
        assert (code, "EMOPFX_API_KEY must be the key that the server asks for" in out) == (2, True)
        assert emopfx(own, tmp_path, "fetch", "--name", "locked", EMOPFX_API_KEY="open")[0] == 0


def test_says_in_the_config_map_what_is_wrong(namespace: Namespace, tmp_path: Path) -> None:
    wrong = "unknown key generation.max_token; did you mean max_tokens?"
    file = tmp_path / "typo.yaml"
    file.write_text("name: typo\ngeneration: {max_token: 5}\n")
    apply(namespace, "typo", file)
    assert wrong in wait_until("it was refused", lambda: _data(namespace, "typo").get("stages.json"))
    code, out = emopfx(namespace, tmp_path, "status")
    assert code == 0
    assert re.search(r"^ typo +- +- +- +failed +- +- *$", out, re.MULTILINE), out
    assert wrong in " ".join(emopfx(namespace, tmp_path, "status", "--name", "typo")[1].split())
    assert emopfx(namespace, tmp_path, "monitor", "--name", "typo")[0] == 1

    corrected = config(tmp_path, "typo", dataset={"samples": 1})
    apply(namespace, "emopfx-typo", corrected)
    wait_done(namespace, "typo")
    file.write_text("name: typo\ngeneration: {max_token: 5}\n")
    apply(namespace, "emopfx-typo", file)
    assert wrong in wait_until("the change was refused", lambda: _data(namespace, "emopfx-typo").get("refused"))
    apply(namespace, "emopfx-typo", config(tmp_path, "typo", dataset={"samples": 1}))
    wait_until("that is taken back", lambda: "refused" not in _data(namespace, "emopfx-typo"))
    assert set(states(namespace, "typo").values()) == {"succeeded"}


def _data(namespace: Namespace, name: str) -> dict[str, str]:
    found = namespace.get("ConfigMap", name)
    return dict(found["data"]) if found else {}


def _revision(namespace: Namespace, name: str) -> str | None:
    runs = {
        found["metadata"]["labels"]["emopfx.dev/experiment"]
        for found in namespace.find("ConfigMap", "emopfx.dev/experiment")
    }
    return next((run for run in runs if run.startswith(f"{name}-")), None)


def _restarts(namespace: Namespace) -> int:
    (pod,) = namespace.pods("operator")
    return int(pod["status"]["containerStatuses"][0]["restartCount"])
