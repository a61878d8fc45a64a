"""Which cluster, and which namespace of it: the one that this process runs in, or the kubeconfig's."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import kubernetes
import yaml

from emopfx.errors import InputError
from emopfx.kubernetes.api import Cluster

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KUBECONFIG = "~/.kube/config"
# A DNS-1123 label, as namespaces are named.
NAMESPACE_PATTERN = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def connect(namespace: str | None) -> Cluster:
    """Return the cluster that this process runs in, or else the one of the kubeconfig.

    Args:
        namespace: The namespace; None takes the one of the pod or of the kubeconfig's context.

    Raises:
        InputError: If there is neither, or what says where it is makes no sense.
    """
    configuration = kubernetes.client.Configuration()
    file = os.environ.get("KUBECONFIG") or KUBECONFIG
    inside = not os.environ.get("KUBECONFIG") and (SERVICE_ACCOUNT / "token").exists()
    try:
        if inside:
            kubernetes.config.load_incluster_config(client_configuration=configuration)
            own = (SERVICE_ACCOUNT / "namespace").read_text().strip()
        else:
            own = _load(file, configuration)
    except (kubernetes.config.ConfigException, OSError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"there is no cluster to talk to (KUBECONFIG or {KUBECONFIG}): {problem}") from None
    # What the client reads of a file it takes for granted.
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        raise InputError(f"{file} is not a kubeconfig; kubectl config view shows what kubectl reads of it") from None
    if not _is_address(configuration.host):
        raise InputError(
            f"the kubeconfig's server must be an address such as https://10.0.0.1:6443, got {configuration.host!r}"
        )
    # Patience is ours: its own repetitions would say nothing for a long time.
    configuration.retries = False
    return Cluster(kubernetes.client.ApiClient(configuration), _namespace(namespace or own), inside=inside)


def _load(file: str, configuration: kubernetes.client.Configuration) -> str:
    """Read a kubeconfig's cluster and user, and return the namespace of its context."""
    kubernetes.config.load_kube_config(file, client_configuration=configuration)
    _, context = kubernetes.config.list_kube_config_contexts(file)
    return str(context["context"].get("namespace") or "default")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _namespace(name: str) -> str:
    if not NAMESPACE_PATTERN.fullmatch(name):
        raise InputError(f"a namespace's name has 1 to 63 of a-z, 0-9 and - (not at its ends), got {name!r}")
    return name
