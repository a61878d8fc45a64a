"""Runs end complete, with nothing lost or doubled, whatever is killed meanwhile."""

import signal
from pathlib import Path

import kubernetes
import pytest

from tests.e2e.gateway import Gateway
from tests.e2e.namespace import Namespace, wait_until
from tests.e2e.runs import bring_here, check_whole, config, emopfx, jobs, record, started, states

# One answer at a time: about ten seconds in which things can happen.
SLOW = {"dataset": {"samples": 4}, "generation": {"repeats": 10, "concurrency": 1}}
ANSWERS = 4 * 8 * 10
# Long enough for another command to begin and end meanwhile, also where two busy cores run everything.
SLOWER = {**SLOW, "generation": {"repeats": 30, "concurrency": 1}}
MORE_ANSWERS = 3 * ANSWERS


def half_done(namespace: Namespace, run: str) -> bool:
    """Whether some answers are there, and others are not."""
    for pod in namespace.find("Pod", f"emopfx.dev/experiment={run}"):
        if pod["status"]["phase"] == "Running" and " failed=0 " in namespace.log(pod["metadata"]["name"]):
            return True
    return False


@pytest.mark.usefixtures("release")
class TestKilled:
    @pytest.mark.parametrize("component", ["server", "generate"])
    def test_pod(self, namespace: Namespace, tmp_path: Path, component: str) -> None:
        file = str(config(tmp_path, f"no-{component}", **SLOW))
        with started(namespace, tmp_path, "run", "-f", file) as run:
            wait_until("answers are there", lambda: half_done(namespace, f"no-{component}"))
            [running] = [pod for pod in namespace.pods(component) if pod["status"]["phase"] == "Running"]
            namespace.delete("Pod", running["metadata"]["name"])
            out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, out
        assert len(jobs(namespace, f"no-{component}")) == 2
        check_whole(bring_here(namespace, tmp_path, f"no-{component}"), ANSWERS)

    def test_ctrl_c_leaves_the_job_and_another_run_goes_on(self, namespace: Namespace, tmp_path: Path) -> None:
        file = str(config(tmp_path, "stopped", **SLOW))
        with started(namespace, tmp_path, "run", "-f", file) as run:
            wait_until("answers are there", lambda: half_done(namespace, "stopped"))
            run.send_signal(signal.SIGINT)
            out, _ = run.communicate(timeout=60)
        assert run.returncode == 130
        assert "stopped: Jobs in the cluster go on; emopfx monitor --name stopped" in out
        made = {name: job["metadata"]["uid"] for name, job in jobs(namespace, "stopped").items()}
        assert len(made) == 1
        code, out = emopfx(namespace, tmp_path, "run", "-f", file)
        assert code == 0, out
        assert (
            made.items() <= {name: job["metadata"]["uid"] for name, job in jobs(namespace, "stopped").items()}.items()
        )
        check_whole(bring_here(namespace, tmp_path, "stopped"), ANSWERS)

    def test_two_at_once_and_the_first_killed(self, namespace: Namespace, tmp_path: Path) -> None:
        file = str(config(tmp_path, "twice", **SLOWER))
        with started(namespace, tmp_path, "run", "-f", file) as run:
            wait_until("answers are there", lambda: half_done(namespace, "twice"))
            code, out = emopfx(namespace, tmp_path, "run", "-f", file)
            assert code == 1
            assert " works on twice " in out
            run.send_signal(signal.SIGKILL)
        assert states(namespace, "twice")["generate"] == "running"

        def taken_over() -> bool:
            return emopfx(namespace, tmp_path, "run", "-f", file)[0] == 0

        wait_until("the dead one's Lease has expired", taken_over, seconds=120)
        assert len(jobs(namespace, "twice")) == 2
        check_whole(bring_here(namespace, tmp_path, "twice"), MORE_ANSWERS)

    def test_api_server_is_away_for_a_while(
        self, client: kubernetes.client.ApiClient, namespace: Namespace, tmp_path: Path
    ) -> None:
        file = str(config(tmp_path, "outage", **SLOW))
        with (
            Gateway(client) as gateway,
            started(namespace, tmp_path, "run", "-f", file, KUBECONFIG=str(gateway.kubeconfig(tmp_path))) as run,
        ):
            assert run.stdout
            wait_until("answers are there", lambda: half_done(namespace, "outage"))
            gateway.close()
            noticed = next(line for line in run.stdout if "the cluster" in line)
            assert noticed.startswith("the cluster does not answer, trying again for 5 minutes: ")
            gateway.open()
            out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, out
        assert len(jobs(namespace, "outage")) == 2
        check_whole(bring_here(namespace, tmp_path, "outage"), ANSWERS)

    def test_another_model_is_refused_while_a_run_goes_on(self, namespace: Namespace, tmp_path: Path) -> None:
        file, other = config(tmp_path, "busy", **SLOWER), config(tmp_path, "other", model={"dtype": "bfloat16"})
        with started(namespace, tmp_path, "run", "-f", str(file)) as run:
            wait_until("answers are there", lambda: half_done(namespace, "busy"))
            code, out = emopfx(namespace, tmp_path, "run", "-f", str(other))
            assert code == 1
            assert "the release emopfx must be changed for other, but busy gets its answers from it (Job busy-" in out
            assert states(namespace, "other")["deploy"] == "failed"
            out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, out
        check_whole(bring_here(namespace, tmp_path, "busy"), MORE_ANSWERS)

    def test_deleted_with_its_data_while_it_goes_on(self, namespace: Namespace, tmp_path: Path) -> None:
        file = str(config(tmp_path, "unwanted", **SLOWER))
        with started(namespace, tmp_path, "run", "-f", file) as run:
            wait_until("answers are there", lambda: half_done(namespace, "unwanted"))
            assert emopfx(namespace, tmp_path, "delete", "--name", "unwanted", "--data")[0] == 0
            out, _ = run.communicate(timeout=60)
        assert run.returncode == 1
        assert "somebody has deleted" in out.splitlines()[-1]
        for kind in ("ConfigMap", "Lease", "Job", "Pod"):
            assert namespace.find(kind, "emopfx.dev/experiment=unwanted") == [], kind
        code, out = emopfx(namespace, tmp_path, "fetch", "--name", "unwanted")
        assert (code, "has no results of unwanted" in out) == (2, True)

    def test_failed_job_is_made_again(self, namespace: Namespace, tmp_path: Path) -> None:
        file = str(config(tmp_path, "failed", **SLOW))
        with started(namespace, tmp_path, "run", "-f", file) as run:
            wait_until("answers are there", lambda: half_done(namespace, "failed"))
            (name,) = jobs(namespace, "failed")
            overdue = {"metadata": {"name": name}, "spec": {"activeDeadlineSeconds": 1}}
            resource = namespace.dynamic.resources.get(api_version="batch/v1", kind="Job")
            resource.patch(body=overdue, namespace=namespace.name, content_type="application/merge-patch+json")
            out, _ = run.communicate(timeout=60)
        assert run.returncode == 1
        assert f"Job {name} failed (Job was active longer than specified deadline)" in out
        assert record(namespace, "failed")["stages.json"]["generate"]["reason"] in out
        code, out = emopfx(namespace, tmp_path, "run", "-f", file)
        assert code == 0, out
        check_whole(bring_here(namespace, tmp_path, "failed"), ANSWERS)
