"""A cluster in memory, for what only the order of events can show; everything else is tried on a real one."""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from emopfx.kubernetes import names
from emopfx.kubernetes.api import Cluster, Conflict, Object


class Memory(Cluster):
    """Keeps objects as an API server does, and notes what was asked for.

    Attributes:
        objects: By kind and name.
        logs: What each pod has printed.
    """

    def __init__(self) -> None:
        self.namespace, self.inside = "research", True
        self.objects: dict[tuple[str, str], Object] = {}
        self.logs: dict[str, str] = {}
        self._versions = map(str, itertools.count(1))

    def get(self, kind: str, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get((kind, name)))

    def find_versioned(self, kind: str, selector: str) -> tuple[list[Object], str]:
        wanted = [part.partition("=") for part in selector.split(",")]
        found = [
            item
            for (of, _), item in self.objects.items()
            if of == kind and all(_selects(item, key, value, equals) for key, equals, value in wanted)
        ]
        return copy.deepcopy(found), "0"

    def create(self, body: Object) -> Object:
        key = (body["kind"], body["metadata"]["name"])
        if key in self.objects:
            raise Conflict(f"could not create {key[0]} {key[1]}: already exists")
        return self._keep(key, body, {"uid": f"uid-{next(self._versions)}"})

    def apply(self, body: Object) -> Object:
        key = (body["kind"], body["metadata"]["name"])
        old = self.objects.get(key)
        if "uid" in body["metadata"] and (old is None or old["metadata"]["uid"] != body["metadata"]["uid"]):
            raise Conflict(f"could not apply {key[0]} {key[1]}: another uid")
        uid = old["metadata"]["uid"] if old else f"uid-{next(self._versions)}"
        data = {**((old or {}).get("data") or {}), **body["data"]}
        managed = [*((old or {"metadata": {}})["metadata"].get("managedFields") or [])]
        return self._keep(key, {**body, "data": data}, {"uid": uid, "managedFields": managed})

    def replace(self, body: Object) -> Object:
        key = (body["kind"], body["metadata"]["name"])
        old = self.objects.get(key)
        if old is None or old["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise Conflict(f"could not replace {key[0]} {key[1]}: it has changed")
        return self._keep(key, body, {"uid": old["metadata"]["uid"]})

    def patch(self, kind: str, name: str, change: Mapping[str, Any]) -> None:
        if (kind, name) in self.objects:
            self._keep((kind, name), _merged(self.objects[kind, name], change), {})

    def delete(self, kind: str, name: str, body: Mapping[str, Any] | None = None) -> None:
        self.objects.pop((kind, name), None)

    def log(self, pod: str, *, last: int | None = None, seconds: int | None = None, previous: bool = False) -> str:
        return self.logs.get(pod, "")

    def give(self, name: str, text: str, label: str) -> None:
        """Apply an experiment.yaml as somebody with kubectl does."""
        key, managed = ("ConfigMap", name), {"manager": "kubectl", "fieldsV1": {"f:data": {"f:experiment.yaml": {}}}}
        if key not in self.objects:
            self.create({"kind": "ConfigMap", "metadata": {"name": name}})
        change = {"labels": {names.EXPERIMENT_LABEL: label}, "managedFields": [managed]}
        self.patch(*key, {"metadata": change, "data": {"experiment.yaml": text}})

    def install(self, release: str, url: str, **job: Any) -> None:
        """Install what a release has for Jobs, with a server at an address; `job` is what their spec has beside."""
        for stage in ("generate", "analyze"):
            labels = names.component(release, stage)
            containers = [{"name": stage, "args": ["run", "--server", url]}]
            pod = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
            template = {"metadata": {"labels": labels}, "spec": {"template": pod, **job}}
            metadata = {"name": f"{release}-{stage}", "labels": labels}
            self.create({"kind": "CronJob", "metadata": metadata, "spec": {"jobTemplate": template}})

    def end(self, job: str, kind: str = "Complete") -> None:
        """Let a Job end, as the Job controller does."""
        condition = {"type": kind, "status": "True", "reason": "x"}
        self.patch("Job", job, {"status": {"conditions": [condition], "startTime": "2026-01-01T00:00:00Z"}})

    def data(self, name: str) -> dict[str, str]:
        """Return what a ConfigMap holds."""
        found: dict[str, str] = self.objects["ConfigMap", name]["data"]
        return found

    def _keep(self, key: tuple[str, str], body: Object, metadata: Object) -> Object:
        kept = copy.deepcopy(body)
        kept.setdefault("apiVersion", "v1")
        kept["metadata"] |= {**metadata, "resourceVersion": next(self._versions)}
        self.objects[key] = kept
        return copy.deepcopy(kept)


def _selects(item: Object, key: str, value: str, equals: str) -> bool:
    labels = item["metadata"].get("labels") or {}
    return labels.get(key) == value if equals else key in labels


def _merged(old: Mapping[str, Any], change: Mapping[str, Any]) -> Object:
    result = dict(copy.deepcopy(old))
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key) or {}, value) if isinstance(value, Mapping) else value
    return result
