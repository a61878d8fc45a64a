"""One namespace of a cluster: objects go in and out as plain dicts, errors come out as one sentence."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import kubernetes
import urllib3
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ResourceNotFoundError

from emopfx.errors import InputError, RunError
from emopfx.kubernetes import names
from emopfx.progress import say

Object = dict[str, Any]

VERSIONS = {
    "ConfigMap": ("v1",),
    "PersistentVolumeClaim": ("v1",),
    "Pod": ("v1",),
    "Deployment": ("apps/v1",),
    "Job": ("batch/v1",),
    # Clusters before 1.21 have only the beta, clusters from 1.25 on only the other.
    "CronJob": ("batch/v1", "batch/v1beta1"),
    "Lease": ("coordination.k8s.io/v1",),
}
REQUEST_SECONDS = 30
FIRST_PATIENCE, PATIENCE = 10.0, 300.0
PAUSE = 2.0
BAD_REQUEST, NOT_FOUND, CONFLICT, TOO_MANY, SERVER_ERROR = 400, 404, 409, 429, 500
# The client's status for a connection that was lost in TLS.
NO_ANSWER = 0


class Conflict(RunError):
    """Somebody else was faster: the object exists already, or has changed since it was read."""


class Cluster:
    """Reads and writes the objects of one namespace.

    A cluster that does not answer for a while is waited for (5 minutes, once it has answered), so every call may
    be sent twice; none does harm then.

    Args:
        client: How the API is reached.
        namespace: The namespace.
        inside: Whether this process runs in the cluster.
    """

    def __init__(self, client: kubernetes.client.ApiClient, namespace: str, *, inside: bool) -> None:
        self.client, self.namespace, self.inside = client, namespace, inside
        self._core = kubernetes.client.CoreV1Api(client)
        self._dynamic: DynamicClient | None = None
        self._patience = FIRST_PATIENCE

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object, None if there is none of that name."""
        try:
            found: Object = self._ask(f"get {kind} {name}", kind, "get", name=name)
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return found

    def find(self, kind: str, selector: str) -> list[Object]:
        """Return the objects with these labels, oldest first."""
        return self.find_versioned(kind, selector)[0]

    def find_versioned(self, kind: str, selector: str) -> tuple[list[Object], str]:
        """Return the objects with these labels, oldest first, and the version of the list they are in."""
        found = self._ask(f"list {kind}s", kind, "get", label_selector=selector)
        # Made by name, an API server says each item's kind; in a list it doesn't.
        items = [{"kind": kind, "apiVersion": found["apiVersion"], **item} for item in found["items"]]
        items.sort(key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"]))
        return items, found["metadata"]["resourceVersion"]

    def wait_for_config_map(self, selector: str, version: str, seconds: float) -> None:
        """Return when a ConfigMap with these labels has changed since that version, or after so many seconds."""
        watcher = kubernetes.watch.Watch()
        listing = self._core.list_namespaced_config_map
        limits = {"timeout_seconds": int(seconds), "_request_timeout": seconds + REQUEST_SECONDS}
        try:
            for _ in watcher.stream(
                listing, self.namespace, label_selector=selector, resource_version=version, **limits
            ):
                return
        except (ApiException, urllib3.exceptions.HTTPError):
            # Too old a version, or no connection: whoever waits reads the whole list again anyway.
            time.sleep(PAUSE)
        finally:
            watcher.stop()

    def apply(self, body: Object) -> Object:
        """Write what `body` says of an object by server-side apply, and leave the rest of it to others."""
        what = f"apply {body['kind']} {body['metadata']['name']}"
        options = {"field_manager": names.MANAGER, "force_conflicts": True}
        applied: Object = self._ask(what, body["kind"], "server_side_apply", body=body, **options)
        return applied

    def create(self, body: Object) -> Object:
        """Create an object.

        Raises:
            Conflict: If there is one of that name.
        """
        what = f"create {body['kind']} {body['metadata']['name']}"
        created: Object = self._ask(what, body["kind"], "create", body=body, field_manager=names.MANAGER)
        return created

    def replace(self, body: Object) -> Object:
        """Replace an object that has not changed since it was read.

        Raises:
            Conflict: If it has.
        """
        what = f"replace {body['kind']} {body['metadata']['name']}"
        replaced: Object = self._ask(what, body["kind"], "replace", body=body, field_manager=names.MANAGER)
        return replaced

    def patch(self, kind: str, name: str, change: Mapping[str, Any]) -> None:
        """Change some fields of an object, if it is there."""
        try:
            self._ask(
                f"change {kind} {name}",
                kind,
                "patch",
                name=name,
                body=dict(change),
                content_type="application/merge-patch+json",
                field_manager=names.MANAGER,
            )
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise

    def delete(self, kind: str, name: str, body: Mapping[str, Any] | None = None) -> None:
        """Delete an object and what it owns, if it is there.

        Raises:
            Conflict: If `body` has preconditions that don't hold.
        """
        options = {"propagationPolicy": "Background", **(body or {})}
        try:
            self._ask(f"delete {kind} {name}", kind, "delete", name=name, body=options)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise

    def log(self, pod: str, *, last: int | None = None, seconds: int | None = None, previous: bool = False) -> str:
        """Return what a pod has printed, each line after its time; empty if it has not begun or is gone.

        Args:
            pod: The pod's name.
            last: Most lines of it, from the end; None is all.
            seconds: How far back to look, by the node's clock; None is from its start.
            previous: Whether to read what the container before the present one has printed.

        Raises:
            RunError: If it can't be read now.
        """
        limits = {"tail_lines": last, "since_seconds": seconds, "previous": previous or None}
        try:
            response = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                timestamps=True,
                _preload_content=False,
                _request_timeout=REQUEST_SECONDS,
                **{key: value for key, value in limits.items() if value is not None},
            )
            return str(response.data.decode(errors="replace"))
        except ApiException as error:
            if error.status in (BAD_REQUEST, NOT_FOUND):
                return ""
            problem = _sentence(error)
        except urllib3.exceptions.HTTPError as error:
            problem = str(error)
        raise RunError(f"the log of pod {pod} can't be read: {problem}")

    def _resource(self, kind: str) -> Any:
        if self._dynamic is None:
            self._see_who_answers()
            self._dynamic = DynamicClient(self.client)
        for version in VERSIONS[kind]:
            try:
                return self._dynamic.resources.get(api_version=version, kind=kind)
            except ResourceNotFoundError:
                continue
        raise RunError(f"the cluster has no {kind} in {' or '.join(VERSIONS[kind])}")

    def _see_who_answers(self) -> None:
        """Look whether this is a Kubernetes API server, as the client takes for granted.

        Raises:
            InputError: If it is not.
        """
        answer: Any = None
        try:
            version = kubernetes.client.VersionApi(self.client)
            response = version.get_code(_preload_content=False, _request_timeout=REQUEST_SECONDS)
            answer = json.loads(response.data)
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise
        except ValueError:
            pass
        if not isinstance(answer, dict) or "gitVersion" not in answer:
            host = self.client.configuration.host
            raise InputError(f"the server at {host} is not a Kubernetes API server; see the kubeconfig")

    def _ask(self, what: str, kind: str, verb: str, **arguments: Any) -> Any:
        def call() -> Any:
            resource = self._resource(kind)
            ask = getattr(resource, verb)
            body = arguments.get("body")
            if verb in ("create", "replace", "server_side_apply"):
                arguments["body"] = {"apiVersion": resource.group_version, **(body or {})}
            options = {"_request_timeout": REQUEST_SECONDS, "serialize": False}
            return json.loads(ask(namespace=self.namespace, **options, **arguments).data)

        try:
            return self._patiently(what, call)
        except ApiException as error:
            if verb in ("get", "patch", "delete") and "name" in arguments:
                raise
            if verb == "replace":
                raise Conflict(f"could not {what}: it is gone") from None
            # What is to be made can't be missing, but the place for it can.
            if (_status(error).get("details") or {}).get("kind") == "namespaces":
                made = f"kubectl create namespace {self.namespace}"
                raise InputError(f"there is no namespace {self.namespace} in the cluster ({made})") from None
            raise RunError(f"the cluster refused to {what} in {self.namespace}: {_sentence(error)}") from None

    def _patiently(self, what: str, call: Callable[[], Any]) -> Any:
        deadline, told = time.monotonic() + self._patience, False
        while True:
            try:
                answer = call()
            except ApiException as error:
                # Without a Status, it is something on the way that says so.
                if error.status == NOT_FOUND and _status(error):
                    raise
                problem = _sentence(error)
                if error.status == CONFLICT:
                    raise Conflict(f"could not {what}: {problem}") from None
                if error.status not in (NO_ANSWER, TOO_MANY, NOT_FOUND) and error.status < SERVER_ERROR:
                    raise RunError(f"the cluster refused to {what} in {self.namespace}: {problem}") from None
            except (urllib3.exceptions.HTTPError, ValueError) as error:
                problem = " ".join(str(error).split())
            else:
                self._patience = PATIENCE
                return answer
            if time.monotonic() > deadline:
                raise RunError(f"the cluster at {self.client.configuration.host} does not answer: {problem}")
            if not told and self._patience == PATIENCE:
                say(f"the cluster does not answer, trying again for {PATIENCE / 60:.0f} minutes: {problem}")
                told = True
            time.sleep(PAUSE)


def _status(error: ApiException) -> Object:
    """Return the Status with which an API server refuses, empty if somebody else did."""
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return body if isinstance(body, dict) and body.get("kind") == "Status" else {}


def _sentence(error: ApiException) -> str:
    return " ".join(str(_status(error).get("message") or error.reason).split())
