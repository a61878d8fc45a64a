"""`emopfx run --target kubernetes` and what is left of it in the cluster."""

import re
import subprocess
from functools import partial
from pathlib import Path

import pytest
import yaml

from emopfx.layout import Layout, read_json
from tests.e2e.namespace import Namespace, Object, chart_values, wait_until
from tests.e2e.runs import bring_here, check_whole, config, emopfx, fingerprint, jobs, record, started, states

PROBES: Object = {"probes": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def printed(namespace: Namespace, folder: Path) -> str:
    """What a first run printed, which installed the release too."""
    values = folder / "values.yaml"
    values.write_text(str(chart_values("cpu")))
    code, out = emopfx(namespace, folder, "run", "-f", str(config(folder, analysis=PROBES)), "--values", str(values))
    assert code == 0, out
    return out


def versions(namespace: Namespace, run: str) -> set[tuple[str, str]]:
    return {(name, job["metadata"]["uid"]) for name, job in jobs(namespace, run).items()}


@pytest.mark.usefixtures("printed")
class TestRun:
    def test_says_how_far_it_is(self, printed: str) -> None:
        assert "deploy: release emopfx in emopfx-e2e-" in printed
        assert "generate 64/64 100.0%" in printed
        assert "nano: 64 of 64 samples" in printed

    def test_results_and_activations_verify(self, namespace: Namespace, folder: Path) -> None:
        check_whole(bring_here(namespace, folder, "nano"), 64)

    def test_the_report_has_probes(self, namespace: Namespace, folder: Path) -> None:
        """They need torch, and the memory that the chart gives."""
        report = read_json(bring_here(namespace, folder, "nano").report("json"))
        assert report is not None
        assert report["probes"]["tasks"]

    def test_a_download_goes_on_where_it_was_stopped(self, namespace: Namespace, folder: Path) -> None:
        layout = bring_here(namespace, folder, "nano")
        whole = next((layout.folder / "activations").rglob("*.safetensors"))
        content = whole.read_bytes()
        whole.with_name(f"{whole.name}.part").write_bytes(content[:1000])
        whole.unlink()
        code, out = emopfx(namespace, folder, "download-activations", "--name", "nano")
        assert code == 0
        assert "127 of 128 files were here already" in out
        assert whole.read_bytes() == content

    def test_a_download_rides_out_a_new_server(self, namespace: Namespace, folder: Path, tmp_path: Path) -> None:
        assert emopfx(namespace, tmp_path, "fetch", "--name", "nano")[0] == 0
        layout = Layout(tmp_path / "results", "nano")
        with started(namespace, tmp_path, "download-activations", "--name", "nano") as download:
            wait_until("some files are there", lambda: list((layout.folder / "activations").rglob("*.safetensors")))
            (server,) = namespace.pods("server")
            namespace.delete("Pod", server["metadata"]["name"])
            out, _ = download.communicate(timeout=120)
        assert download.returncode == 0, out
        check_whole(layout, 64)

    def test_the_record_is_complete(self, namespace: Namespace) -> None:
        found = record(namespace, "nano")
        assert set(states(namespace, "nano").values()) == {"succeeded"}
        assert found["stages.json"]["generate"]["job"] in jobs(namespace, "nano")
        assert found["experiment_config.json"]["model"]["num_layers"] == 4
        assert (found["summary.json"]["found"], found["summary.json"]["missing"]) == (64, 0)
        assert found["experiment.yaml"] == found["run.yaml"]
        assert {job["metadata"]["labels"]["emopfx.dev/hash"] for job in jobs(namespace, "nano").values()} == {
            found["hash"][:8]
        }
        assert namespace.get("Lease", "emopfx-nano") is None

    def test_logs_and_status_and_monitor(self, namespace: Namespace, folder: Path) -> None:
        assert "generate: 0 of 64 already done, 64 to do" in emopfx(namespace, folder, "logs", "--name", "nano")[1]
        assert re.search(
            r"^ nano .* 64/64 .* succeeded", emopfx(namespace, folder, "status", COLUMNS="40")[1], re.MULTILINE
        )
        code, out = emopfx(namespace, folder, "monitor", "--name", "nano")
        assert (code, out.splitlines()[-1]) == (0, "nano: all stages have succeeded")

    def test_again_there_is_nothing_to_do(self, namespace: Namespace, folder: Path) -> None:
        before, kept = versions(namespace, "nano"), record(namespace, "nano")
        code, out = emopfx(namespace, folder, "run", "-f", str(folder / "nano.yaml"))
        assert code == 0
        assert "nothing to do" in out
        assert versions(namespace, "nano") == before
        assert record(namespace, "nano") == kept

    def test_a_changed_config_runs_beside_the_old_results(self, namespace: Namespace, folder: Path) -> None:
        old, before = fingerprint(bring_here(namespace, folder, "nano")), versions(namespace, "nano")
        changed = folder / "changed"
        changed.mkdir()
        file = str(config(changed, generation={"seed": 7}, analysis=PROBES))
        code, out = emopfx(namespace, folder, "run", "-f", file)
        assert code == 0
        said = re.search(r"the config has changed \(generation\.seed: 0 → 7\), and runs as (nano-\w+) beside", out)
        assert said, out
        run = said[1]
        check_whole(bring_here(namespace, folder, run), 64)
        assert versions(namespace, "nano") == before
        assert fingerprint(bring_here(namespace, folder, "nano")) == old
        made = versions(namespace, run)
        assert emopfx(namespace, folder, "run", "-f", file)[0] == 0
        assert versions(namespace, run) == made

    def test_deletes_the_record_and_the_data_only_when_asked(self, namespace: Namespace, folder: Path) -> None:
        file = str(config(folder, "brief", dataset={"samples": 1}))
        assert emopfx(namespace, folder, "run", "-f", file)[0] == 0
        assert emopfx(namespace, folder, "delete", "--name", "brief")[0] == 0
        assert namespace.get("ConfigMap", "emopfx-brief") is None
        assert not jobs(namespace, "brief")
        assert emopfx(namespace, folder, "fetch", "--name", "brief")[0] == 0
        assert emopfx(namespace, folder, "delete", "--name", "brief", "--data")[0] == 0
        code, out = emopfx(namespace, folder, "fetch", "--name", "brief")
        assert code == 2
        assert "has no results of brief" in out


@pytest.mark.usefixtures("printed")
def test_jobs_made_by_hand(namespace: Namespace, folder: Path) -> None:
    for stage in ("generate", "analyze"):
        line = ["kubectl", "create", "job", f"by-hand-{stage}", f"--from=cronjob/emopfx-{stage}", "-n", namespace.name]
        subprocess.run(line, check=True)
        wait_until(f"{stage} is done", partial(_succeeded, namespace, line[3]))
    given = namespace.get("ConfigMap", "emopfx-experiment")
    assert given is not None
    check_whole(bring_here(namespace, folder, yaml.safe_load(given["data"]["experiment.yaml"])["name"]), 64)


def _succeeded(namespace: Namespace, job: str) -> bool:
    found = namespace.get("Job", job)
    assert found is not None
    assert not found["status"].get("failed")
    return bool(found["status"].get("succeeded"))


@pytest.mark.usefixtures("printed")
class TestWrongConfig:
    def test_what_only_a_job_can_see(self, namespace: Namespace, folder: Path) -> None:
        wrong = config(folder, "wrong", dataset={"path": "manifests/none.jsonl"})
        code, out = emopfx(namespace, folder, "run", "-f", str(wrong))
        assert code == 2
        sentence = "dataset.path: there is no file /experiment/manifests/none.jsonl nor manifests/none.jsonl"
        assert sentence in out
        entry = record(namespace, "wrong")["stages.json"]["generate"]
        assert entry["state"] == "failed"
        assert entry["reason"].startswith(sentence)
        # Before 1.26 a second pod may have been begun.
        pods = [pod for pod in namespace.find("Pod", f"job-name={entry['job']}") if pod["status"]["phase"] == "Failed"]
        assert sentence in namespace.log(pods[0]["metadata"]["name"])

    def test_what_the_server_can_tell(self, namespace: Namespace, folder: Path) -> None:
        file = config(folder, "nowhere", capture={"hook_points": ["nowhere.output"]})
        code, out = emopfx(namespace, folder, "run", "-f", str(file))
        assert code == 2
        assert "tiny has no hook point 'nowhere.output'" in out
        assert record(namespace, "nowhere")["stages.json"]["configure"]["state"] == "failed"
        assert not jobs(namespace, "nowhere")

    def test_a_namespace_that_is_not_there(self, namespace: Namespace, folder: Path) -> None:
        code, out = emopfx(namespace, folder, "run", "-f", str(config(folder)), "--namespace", "not-there")
        assert (code, out) == (
            2,
            "emopfx: there is no namespace not-there in the cluster (kubectl create namespace not-there)\n",
        )

    def test_may_be_corrected_under_its_name(self, namespace: Namespace, folder: Path) -> None:
        file = config(folder, "wrong", dataset={"samples": 1})
        code, out = emopfx(namespace, folder, "run", "-f", str(file))
        assert code == 0, out
        assert set(states(namespace, "wrong").values()) == {"succeeded"}
