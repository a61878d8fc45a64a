"""Installs and upgrades a release: by the helm binary if there is one, else by helm-python-sdk."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import yaml

from emopfx.errors import InputError, RunError

Values = dict[str, Any]
NOT_FOUND = "release: not found"
ERROR = "Error: "
# What Helm says where the values are wrong: the schema's findings, or a template's own refusal.
WRONG_VALUES = ("values don't meet the specifications of the schema", "execution error at (")
HINTS = ("Use --debug", 'Use "helm', "Usage:")


class Release(NamedTuple):
    """A release as it is: its state ("deployed" if its last upgrade went well) and the values it was given."""

    state: str
    values: Values


class Helm(Protocol):
    """What emopfx needs of Helm."""

    def read(self, release: str) -> Release | None:
        """Return a release, None if there is none of that name."""

    def upgrade(self, release: str, chart: str, values: Values) -> None:
        """Install a release, or upgrade it; exactly these values are its own then."""


class HelmBinary:
    """The helm command, for one namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def read(self, release: str) -> Release | None:
        """Return a release, None if there is none of that name."""
        done = self._helm("status", release, "--output", "json")
        if done.returncode and NOT_FOUND in done.stderr:
            return None
        found = json.loads(_output(done))
        return Release(found["info"]["status"], found.get("config") or {})

    def upgrade(self, release: str, chart: str, values: Values) -> None:
        """Install a release, or upgrade it; exactly these values are its own then."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "values.yaml"
            file.write_text(yaml.safe_dump(values))
            options = ("--install", "--reset-values", "--values", str(file))
            _output(self._helm("upgrade", release, chart, *options))

    def _helm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["helm", *arguments, "--namespace", self._namespace]
        return subprocess.run(command, capture_output=True, text=True, check=False)


class HelmSdk:
    """Helm as a library, in a process of its own, for one namespace.

    Helm writes under the name of its process, and refuses to change what another name has written. So the process
    is called helm, as the binary is: either can upgrade what the other has installed.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def read(self, release: str) -> Release | None:
        """Return a release, None if there is none of that name."""
        found = self._call("read", release)
        return Release(*found) if found else None

    def upgrade(self, release: str, chart: str, values: Values) -> None:
        """Install a release, or upgrade it; exactly these values are its own then."""
        self._call("upgrade", release, chart, values)

    def _call(self, *call: object) -> Any:
        command = [str(Path(sys.executable).with_name("helm")), "-m", "emopfx.kubernetes.helm_sdk", self._namespace]
        given = json.dumps(call)
        done = subprocess.run(
            command, executable=sys.executable, input=given, capture_output=True, text=True, check=False
        )
        return json.loads(_output(done))


def find(namespace: str) -> Helm:
    """Return the helm binary if there is one, else the library.

    Raises:
        InputError: If there is neither.
    """
    if shutil.which("helm"):
        return HelmBinary(namespace)
    if importlib.util.find_spec("helm_python"):
        return HelmSdk(namespace)
    raise InputError(
        "the stage deploy needs helm on the PATH, or pip install 'emopfx[helm]'; a release that is installed "
        "already can be used with --stages configure,generate,analyze"
    )


class Change(NamedTuple):
    """What a release must be given: what it is now, None if it is to be installed, and the values it shall have."""

    before: Release | None
    values: Values


def needed(helm: Helm, release: str, changes: Mapping[str, Any]) -> Change | None:
    """Return how a release must change to have these values beside those that it was given, None if it has them.

    Args:
        helm: How Helm is reached.
        release: The release's name.
        changes: The values.
    """
    before = helm.read(release)
    wanted = merged(before.values if before else {}, changes)
    if before and before.state == "deployed" and _given(wanted) == _given(before.values):
        return None
    return Change(before, wanted)


def apply(helm: Helm, release: str, chart: str, change: Change) -> None:
    """Change a release.

    Args:
        helm: How Helm is reached.
        release: The release's name.
        chart: A folder, an archive or an oci:// address.
        change: What `needed` has returned.
    """
    if "://" not in chart and not Path(chart).exists():
        raise InputError(f"--chart: there is no chart at {chart}, and the release {release} must be changed")
    helm.upgrade(release, chart, change.values)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """Return values with changes to them, mapping by mapping, as Helm does."""
    result = dict(values)
    for key, change in changes.items():
        old = result.get(key)
        result[key] = merged(old, change) if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return result


def _given(values: Mapping[str, Any]) -> Values:
    """Return values without the empty ones, which stand for the chart's defaults."""
    kept = {key: _given(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value not in (None, "")}


def _output(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == 0:
        return done.stdout
    sentence = _error(done.stderr) or f"exit code {done.returncode}"
    wrong = any(sign in sentence for sign in WRONG_VALUES)
    raise (InputError if wrong else RunError)(f"helm: {sentence}")


def _error(printed: str) -> str:
    """Return what Helm says is wrong, from its line `Error: …` on, as one line without hints how to use it."""
    lines = [line.strip() for line in printed.splitlines()]
    start = next((number for number, line in enumerate(lines) if line.startswith(ERROR)), 0)
    said = [line.removeprefix(ERROR) for line in lines[start:] if line and not line.startswith(HINTS)]
    return " ".join(said)
