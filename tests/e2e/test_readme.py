"""README's section on Kubernetes, line by line, as a new user would try it.

Only what a reader has to adapt is adapted: names of images, the namespace, and for Helm's lines its library.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes
import pytest
import yaml

from tests.chart import plain
from tests.e2e.namespace import CHART, RELEASE, ROOT, Namespace, Object, chart_values, new_namespace, wait_until
from tests.e2e.runs import jobs, kubeconfig, record, states
from tests.e2e.test_watch import wait_done

SECONDS = 300
REGISTRY = "registry.example.org/"
HASH = re.compile(r"-[0-9a-f]{8}\b")


def lines() -> Iterator[str]:
    """The commands of the section's console blocks, without their comments."""
    section = (ROOT / "README.md").read_text().partition("## On Kubernetes\n")[2].partition("\n## ")[0]
    for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
        for command in re.findall(r"^\$ ((?:.*\\\n)*.*)", block, re.MULTILINE):
            yield " ".join(shlex.split(command.replace("\\\n", ""), comments=True))


def having(start: str) -> list[str]:
    """The lines that begin with some words."""
    return [line for line in lines() if line.startswith(start)]


class Reader:
    """Somebody in a folder with the repository's files, who types lines."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self.namespace, self.folder = namespace, folder
        (folder / "charts").symlink_to(ROOT / "charts")
        (folder / "manifests").symlink_to(ROOT / "manifests")
        way = kubeconfig(folder, namespace=namespace.name)
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {name: value for name, value in os.environ.items() if not name.startswith("EMOPFX_")}
        self._environment = {**own, "KUBECONFIG": str(way), "PATH": programs}

    def types(self, line: str) -> str:
        """Run a line and return what it printed."""
        if line.startswith("helm "):
            return self._helm(line.split()[1:])
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        return done.stdout

    def _helm(self, words: list[str]) -> str:
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("command", choices=("install", "test", "upgrade"))
        parser.add_argument("release", choices=(RELEASE,))
        parser.add_argument("chart", nargs="?", choices=("charts/emopfx",))
        parser.add_argument("-f", dest="files", action="append", default=[])
        parser.add_argument("--set", dest="settings", action="append", default=[])
        parser.add_argument("--logs", action="store_true")
        parser.add_argument("--reuse-values", action="store_true")
        asked = parser.parse_args(words)
        helm, values = self.namespace.helm, self._values(asked.files, asked.settings)
        if asked.command == "test":
            return str(helm.test(RELEASE, timeout=SECONDS, logs=asked.logs)["logs"])
        if asked.command == "install":
            helm.install(CHART, RELEASE, values, namespace=self.namespace.name)
        else:
            helm.upgrade(CHART, RELEASE, values, reuse_values=asked.reuse_values)
        return ""

    def _values(self, files: list[str], settings: list[str]) -> Object:
        values: Object = {}
        for file in files:
            values |= yaml.safe_load((self.folder / file).read_text())
        for setting in settings:
            path, _, value = setting.partition("=")
            level, (*above, last) = values, path.split(".")
            for key in above:
                level = level.setdefault(key, {})
            # The images are those that were built for the tests.
            level[last] = value.replace(REGISTRY, "localhost/") if value not in ("true", "false") else value == "true"
            if last == "repository":
                level["tag"] = chart_values("cpu")["image"]["server"]["tag"]
        return values


@pytest.fixture(scope="module")
def reader(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    reader = Reader(namespace, tmp_path_factory.mktemp("reader"))
    [install] = having("helm install ")
    # As it says there, for a cluster without a GPU.
    reader.types(install.replace("charts/emopfx --set", "charts/emopfx -f charts/emopfx/ci/cpu-values.yaml --set"))
    return reader


def test_every_line_is_tried() -> None:
    """What is not here is new in README, or was not tried."""
    tried = (
        *("make images ", "helm install ", "helm test ", "helm upgrade ", "manifests/ci/apply.sh "),
        *("emopfx run -f ", "emopfx status ", "emopfx monitor ", "emopfx fetch ", "emopfx download-activations "),
        *("emopfx delete ", "kubectl rollout status ", "kubectl logs ", "kubectl get configmap "),
        *("kubectl create job ", "kubectl create namespace ", "kubectl apply -k "),
    )
    assert [line for line in lines() if not line.startswith(tried)] == []
    assert [start for start in tried if not having(start)] == []


def test_the_release_and_its_test(reader: Reader) -> None:
    reader.types(having("kubectl rollout status ")[0])
    assert "as the answer said" in reader.types(having("helm test ")[0])


def test_experiments(reader: Reader) -> None:
    first, again, cooler = having("emopfx run -f ")
    assert "demo: done; emopfx fetch --name demo" in reader.types(first)
    assert "demo: nothing to do, all stages have succeeded" in reader.types(again)
    demo = yaml.safe_load((ROOT / "manifests" / "experiments" / "demo.yaml").read_text())
    demo["generation"]["temperature"] = 0.2
    (reader.folder / "demo-cooler.yaml").write_text(yaml.safe_dump(demo))
    said = reader.types(cooler)
    assert "demo: the config has changed (generation.temperature: 0.7 → 0.2), and runs as demo-" in said

    assert "192/192" in reader.types(having("emopfx status ")[0])
    [job] = [name for name in jobs(reader.namespace, "demo") if "-generate-" in name]
    [logs] = having("kubectl logs ")
    assert "generate 192/192 100.0%" in reader.types(HASH.sub(job[-9:], logs))
    assert "demo: all stages have succeeded" in reader.types(having("emopfx monitor ")[0])
    assert "summary.json" in reader.types(having("kubectl get configmap ")[0])
    assert "are in results/demo" in reader.types(having("emopfx fetch ")[0])
    assert "384 files are whole" in reader.types(having("emopfx download-activations ")[0])
    assert "demo: deleted without its results" in reader.types(having("emopfx delete ")[0])


def test_from_ci_and_by_hand(reader: Reader) -> None:
    reader.types(having("helm upgrade ")[0])
    assert "configmap/emopfx-demo serverside-applied" in reader.types(having("manifests/ci/apply.sh ")[0])
    # At once, as one types it: the operator has not seen it yet.
    assert "demo: all stages have succeeded" in reader.types(having("emopfx monitor ")[-1])
    assert set(states(reader.namespace, "demo").values()) == {"succeeded"}
    assert record(reader.namespace, "demo")["summary.json"]["found"] == 192
    [by_hand] = having("kubectl create job ")
    reader.types(by_hand)
    wait_until("the Job by hand is done", lambda: _succeeded(reader.namespace, by_hand.split()[3]))


def _succeeded(namespace: Namespace, job: str) -> bool:
    found = namespace.get("Job", job)
    return bool(found and found.get("status", {}).get("succeeded"))


def test_without_helm(client: kubernetes.client.ApiClient, tmp_path: Path) -> None:
    """The kustomization, adapted as it says: the images, the namespace, and cpu.yaml; rendered for this cluster."""
    [apply] = having("kubectl apply -k ")
    version = kubernetes.client.VersionApi(client).get_code().git_version.removeprefix("v").partition("-")[0]
    with new_namespace(client) as namespace:
        reader = Reader(namespace, tmp_path)
        (tmp_path / "manifests").unlink()
        folder = tmp_path / "manifests" / "kubernetes"
        folder.mkdir(parents=True)
        for name, text in plain.manifests(version).items():
            (folder / f"{name}.yaml").write_text(text)
        given = (plain.FOLDER / "kustomization.yaml").read_text()
        assert having("kubectl create namespace ") == [f"kubectl create namespace {plain.NAMESPACE}"]
        (folder / "kustomization.yaml").write_text(
            given.replace("- gpu.yaml", "- cpu.yaml")
            .replace(f"namespace: {plain.NAMESPACE}", f"namespace: {namespace.name}")
            .replace(REGISTRY, "localhost/")
            .replace("}\n", ", newTag: dev}\n")
        )
        reader.types(apply)
        namespace.wait_server()
        (tmp_path / "one.yaml").write_text(
            yaml.safe_dump(
                {
                    "name": "one",
                    "model": {"name": "tiny", "dtype": "float32"},
                    "dataset": {"path": "manifests/experiments/demo-stories.jsonl", "samples": 1},
                }
            )
        )
        reader.types(f"{ROOT}/manifests/ci/apply.sh one.yaml")
        wait_done(namespace, "one")
