"""The record of a run: the ConfigMap `emopfx-<run>`.

Its keys are experiment.yaml (as given), run.yaml (what the Jobs run), experiment_config.json (as resolved in the
cluster), hash, stages.json (an entry per stage) and summary.json (of report.json). Somebody else may have applied
experiment.yaml; it stays theirs, and may change while the Jobs go on with run.yaml. If the changed one can't be run,
`refused` says why.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from emopfx.config import Stage
from emopfx.errors import InputError
from emopfx.kubernetes import names
from emopfx.kubernetes.api import Cluster, Conflict, Object

# What a ConfigMap may hold, with room for its metadata.
MOST_BYTES = (1 << 20) - (1 << 14)
GIVEN, REFUSED = "experiment.yaml", "refused"
HASH_PATTERN = "[0-9a-f]{8,}"


class Entry(BaseModel):
    """What others rely on in a stage's entry."""

    model_config = ConfigDict(strict=True)

    state: Literal["pending", "running", "succeeded", "failed"]
    started: str = ""
    finished: str = ""
    job: str = ""
    reason: str = ""
    refused: bool = False
    done: int = 0
    total: int = 0


class Summary(BaseModel):
    """What others rely on in a summary."""

    model_config = ConfigDict(strict=True)

    found: int
    expected: int


SHAPES: dict[str, TypeAdapter[Any]] = {
    "stages.json": TypeAdapter(dict[Stage, Entry]),
    "summary.json": TypeAdapter(Summary),
    "experiment_config.json": TypeAdapter(dict[str, Any]),
}


class RunRecord:
    """One run's record, as read from the cluster or to be written to it.

    Attributes:
        run: The run's name.
        release: The release whose templates its Jobs are made from.
        hash: The config hash.
        given: experiment.yaml, as it was given.
        config: run.yaml, the config that the Jobs get.
        stages: By stage, its entry: state (pending, running, succeeded or failed), started, finished, job, reason,
            and for bad configs `refused`.
        resolved: experiment_config.json as the Jobs wrote it, None before they have.
        summary: What report.json comes to, None before there is one.
        refused: Why experiment.yaml, changed since, can't be run; None if it can, or has not changed.
    """

    def __init__(self, run: str, release: str, config_hash: str, given: str, config: str) -> None:
        self.run, self.release, self.hash, self.given, self.config = run, release, config_hash, given, config
        self.stages: dict[str, dict[str, Any]] = {}
        self.resolved: dict[str, Any] | None = None
        self.summary: dict[str, Any] | None = None
        self.refused: str | None = None
        self.given_by_others = False
        self.object: Object = {}

    @classmethod
    def read(cls, cluster: Cluster, run: str) -> "RunRecord | None":
        """Read a run's record, None if there is none (a ConfigMap with nothing but experiment.yaml is none)."""
        found = cluster.get("ConfigMap", names.config_map(run))
        return None if found is None else cls.of(found)

    @classmethod
    def of(cls, found: Object) -> "RunRecord | None":
        """Return the record in a ConfigMap, None if it holds none.

        Raises:
            InputError: If somebody has written into it what is none.
        """
        data, labels = found.get("data") or {}, found["metadata"].get("labels") or {}
        # Its name says whose record it is, also where somebody has changed its labels.
        name, prefix = found["metadata"]["name"], names.config_map("")
        if "hash" not in data or not name.startswith(prefix):
            return None
        if not re.fullmatch(HASH_PATTERN, data["hash"]):
            raise InputError(f"ConfigMap {name}: {data['hash']!r} is not a hash; somebody has changed it")
        run, release = name.removeprefix(prefix), labels.get(names.RELEASE_LABEL, "")
        record = cls(run, release, data["hash"], data.get(GIVEN, ""), data.get("run.yaml", ""))
        record.stages = _parsed(found, "stages.json") or {}
        record.resolved, record.summary = _parsed(found, "experiment_config.json"), _parsed(found, "summary.json")
        record.refused = data.get(REFUSED)
        record.given_by_others = not owns_config(found)
        record.object = found
        return record

    def state(self, stage: str) -> str | None:
        """Return a stage's state, None if it was never asked for."""
        state: str | None = self.stages.get(stage, {}).get("state")
        return state

    def save(self, cluster: Cluster) -> None:
        """Write the record.

        Raises:
            InputError: If the config is too large for a ConfigMap.
            Conflict: If somebody has deleted the ConfigMap meanwhile.
        """
        try:
            self.object = cluster.apply(self.body())
        except Conflict:
            name = names.config_map(self.run)
            raise Conflict(f"{self.run}: somebody has deleted its record (ConfigMap {name}), and so the run") from None

    def body(self) -> Object:
        """Return the ConfigMap, of at most 1 MiB: what is resolved stays in the results folder if it does not fit."""
        data = {"run.yaml": self.config, "hash": self.hash, "stages.json": json.dumps(self.stages, indent=1)}
        if not self.given_by_others:
            data[GIVEN] = self.given
        if self.summary is not None:
            data["summary.json"] = json.dumps(self.summary, indent=1)
        if _size(data) > MOST_BYTES:
            raise InputError(
                f"{self.run}: a ConfigMap holds at most 1 MiB, and this config takes {_size(data)} bytes "
                "(it is kept as given and as run); shorten its prefixes"
            )
        if self.resolved is not None:
            data["experiment_config.json"] = json.dumps(self.resolved)
            if _size(data) > MOST_BYTES:
                note = f"too large for a ConfigMap; it is {self.run}/experiment_config.json in the results"
                data["experiment_config.json"] = json.dumps({"name": self.run, "note": note})
        labels = {"app.kubernetes.io/name": "emopfx", **names.labels(self.run, self.release, self.hash)}
        metadata = {"name": names.config_map(self.run), "labels": labels}
        if self.object:
            # One that was deleted meanwhile is not made again.
            metadata["uid"] = self.object["metadata"]["uid"]
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def summarize(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the record keeps of a report: how many samples there are, and the numbers of each variant."""
    missing = report["missing"]
    kept = {key: report[key] for key in ("created", "expected", "found")}
    return {**kept, "missing": len(missing), "variants": report["statistics"]["variants"]}


def release_of(cluster: Cluster, run: str) -> str | None:
    """Return the release that a run's ConfigMap names, None if there is none or it names none."""
    found = cluster.get("ConfigMap", names.config_map(run))
    return ((found or {"metadata": {}})["metadata"].get("labels") or {}).get(names.RELEASE_LABEL) or None


def owns_config(found: Object) -> bool:
    """Whether experiment.yaml in a ConfigMap was written by emopfx and not applied by somebody else."""
    for entry in found["metadata"].get("managedFields") or []:
        fields = entry.get("fieldsV1", {}).get("f:data", {})
        if f"f:{GIVEN}" in fields and entry.get("manager") != names.MANAGER:
            return False
    return True


def refuse(cluster: Cluster, found: Object, sentence: str, time: str) -> None:
    """Write into a ConfigMap why its experiment.yaml can't be run; the record of an earlier one in it stays."""
    stages = {"configure": {"state": "failed", "finished": time, "reason": sentence, "refused": True}}
    recorded = "hash" in (found.get("data") or {})
    change = {REFUSED: sentence} if recorded else {"stages.json": json.dumps(stages, indent=1)}
    cluster.patch("ConfigMap", found["metadata"]["name"], {"data": change})


def accept(cluster: Cluster, found: Object) -> None:
    """Take back that the experiment.yaml of a ConfigMap was refused, now that it has been corrected."""
    if REFUSED in (found.get("data") or {}):
        cluster.patch("ConfigMap", found["metadata"]["name"], {"data": {REFUSED: None}})


def applied(found: Object) -> RunRecord:
    """Return what there is to say of a ConfigMap that holds no record: that it was refused, if it was."""
    run = found["metadata"]["labels"][names.EXPERIMENT_LABEL]
    data = found.get("data") or {}
    record = RunRecord(run, "", "", data.get(GIVEN, ""), "")
    record.stages = _parsed(found, "stages.json") or {}
    return record


def _parsed(found: Object, key: str) -> Any:
    """Return what a key holds, None if it is not there.

    Raises:
        InputError: If it is not what emopfx writes: everybody may write into a ConfigMap.
    """
    text = (found.get("data") or {}).get(key)
    if text is None:
        return None
    try:
        value = json.loads(text)
        SHAPES[key].validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"is not what emopfx writes ({where}{': ' if where else ''}{first['msg']})"
    except (ValueError, RecursionError) as error:
        problem = f"is not valid JSON ({error})"
    else:
        return value
    raise InputError(f"ConfigMap {found['metadata']['name']}: {key} {problem}; somebody has changed it")


def _size(data: Mapping[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in data.items())
