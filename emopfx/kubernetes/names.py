"""What the objects of a run are called, and the labels by which they are found."""

from collections.abc import Mapping

from emopfx import hashing

MANAGER = "emopfx"
EXPERIMENT_LABEL = "emopfx.dev/experiment"
STAGE_LABEL = "emopfx.dev/stage"
HASH_LABEL = "emopfx.dev/hash"
RELEASE_LABEL = "emopfx.dev/release"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Longest name that a revision's hash fits behind: names have 40 characters.
UNCUT = 31


def config_map(run: str) -> str:
    """Return the name of a run's ConfigMap, which is its Lease's name too."""
    return f"emopfx-{run}"


def job(run: str, stage: str, config_hash: str) -> str:
    """Return the name of the Job that runs a stage; with a run's 40 characters it has at most 58."""
    return f"{run}-{stage}-{config_hash[:8]}"


def revision(name: str, config_hash: str) -> str:
    """Return the name under which a changed config runs beside the results of the one before.

    Names that begin alike stay apart where they are cut: the config hash does not cover them.
    """
    if len(name) > UNCUT:
        name = f"{name[:26].rstrip('-')}-{hashing.digest(name)[:4]}"
    return f"{name}-{config_hash[:8]}"


def labels(run: str, release: str, config_hash: str) -> dict[str, str]:
    """Return the labels of a run's objects."""
    return {EXPERIMENT_LABEL: run, RELEASE_LABEL: release, HASH_LABEL: config_hash[:8]}


def component(release: str, name: str) -> dict[str, str]:
    """Return the labels of a part of a release: server, generate, analyze or operator."""
    return {"app.kubernetes.io/instance": release, "app.kubernetes.io/component": name}


def selector(labels: Mapping[str, str]) -> str:
    """Return labels as a selector."""
    return ",".join(f"{key}={value}" for key, value in labels.items())
