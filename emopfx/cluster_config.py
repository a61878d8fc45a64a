"""Configs in a cluster: their hash, and the run that each belongs to.

The hash is made where dataset and vector files of the cluster can't be read: it covers their paths as given in place of
their content. (The Jobs record the hash with the content, in experiment_config.json.)
"""

from typing import Any

from emopfx import config_file, config_identity, dataset
from emopfx.config import Experiment
from emopfx.errors import InputError
from emopfx.hashing import Json
from emopfx.kubernetes import names
from emopfx.kubernetes.api import Cluster
from emopfx.kubernetes.configmap import GIVEN, RunRecord


def read(text: str, source: str) -> Experiment:
    """Read an experiment.yaml whose dataset, if it is a file, lies in the cluster.

    Raises:
        InputError: If anything in it is wrong.
    """
    return config_file.parse(_parsed(text, source), source, find_files=False)


def _parsed(text: str, source: str) -> dict[str, Any]:
    try:
        return config_file.parse_yaml(text, source)
    except RecursionError:
        raise InputError(f"{source}: not valid YAML: it is nested too deep") from None


def config_of(cluster: Cluster, run: str) -> dict[str, Any]:
    """Return the raw config that is recorded under a name, empty if there is none."""
    record = RunRecord.read(cluster, run)
    return _parsed(record.config, run) if record else {}


def identity(experiment: Experiment) -> dict[str, Json]:
    """Return what the config hash of a run in a cluster covers."""
    return config_identity.identity(experiment, dataset.reference(experiment.dataset))


def locate(
    cluster: Cluster, experiment: Experiment, release: str, *, new_revision: bool = False
) -> tuple[str, RunRecord | None, str]:
    """Find the run of a config: the one of the experiment's name, or of its name and hash if that has another config.

    Returns:
        The run's name, its record if it has one, and what differs from the config under the experiment's name.

    Raises:
        InputError: If the name belongs to another release.
    """
    identified = identity(experiment)
    config_hash = config_identity.config_hash(identified)
    old = RunRecord.read(cluster, experiment.name)
    if old and old.release not in ("", release):
        raise InputError(
            f"{experiment.name} belongs to the release {old.release} in {cluster.namespace}; choose another name, or "
            f"--release {old.release}"
        )
    # Of a file, the hash here covers the path and the Jobs' hash the content: they may have found results of another.
    elsewhere = old is not None and new_revision and refused(old, "generate")
    if (old is None and not new_revision) or (old and old.hash == config_hash and not elsewhere):
        return experiment.name, old, ""
    changes = (
        config_identity.difference(identity(read(old.config, f"run.yaml of {old.run}")), identified) if old else []
    )
    if old and not _has_samples(old) and not new_revision:
        return experiment.name, old, "; ".join(changes)
    run = names.revision(experiment.name, config_hash)
    return run, RunRecord.read(cluster, run), "; ".join(changes)


def _has_samples(record: RunRecord) -> bool:
    """Whether a run may have got as far as a sample; before, its config may be corrected in place."""
    generate = record.stages.get("generate", {})
    before_any = refused(record, "generate") and not generate.get("done")
    return generate.get("state", "pending") != "pending" and not before_any


def refused(record: RunRecord, stage: str) -> bool:
    """Whether a stage failed because the config is wrong."""
    entry = record.stages.get(stage, {})
    return entry.get("state") == "failed" and bool(entry.get("refused"))


def refuse_to_delete(cluster: Cluster, run: str) -> None:
    """See that nobody asks for a run any more that is to be deleted.

    Raises:
        InputError: If a ConfigMap of another run does: the operator would begin it again.
    """
    for found in cluster.find("ConfigMap", names.EXPERIMENT_LABEL):
        metadata, text = found["metadata"], (found.get("data") or {}).get(GIVEN, "")
        if metadata["labels"][names.EXPERIMENT_LABEL] == run:
            continue
        try:
            experiment = read(text, metadata["name"])
        except InputError:
            continue
        if names.revision(experiment.name, config_identity.config_hash(identity(experiment))) == run:
            raise InputError(
                f"{run} is what the ConfigMap {metadata['name']} asks for, so that the operator would run it again; "
                "apply another experiment.yaml there, or delete that first"
            )
