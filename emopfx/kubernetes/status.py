"""Looks at the runs in a namespace."""

from rich import box
from rich.console import Console
from rich.table import Table

from emopfx.config import STAGES
from emopfx.errors import InputError
from emopfx.kubernetes import configmap, lease, names
from emopfx.kubernetes.api import Cluster
from emopfx.kubernetes.configmap import RunRecord
from emopfx.kubernetes.lease import Sightings
from emopfx.progress import say

# What the tables need; a narrower terminal wraps their lines, which can be read better than cut ones.
COLUMNS = 80


def read(cluster: Cluster, run: str) -> RunRecord:
    """Return the record of the run of that name.

    Raises:
        InputError: If there is none, with the names that there are.
    """
    found = RunRecord.read(cluster, run)
    if found is None:
        there = {record.run: record for record in records(cluster)}
        if run not in there:
            listed = ", ".join(there) or "none"
            raise InputError(f"there is no experiment {run} in the namespace {cluster.namespace}; there are: {listed}")
        found = there[run]
    return found


def records(cluster: Cluster) -> list[RunRecord]:
    """Return the records of all runs in the namespace, by name; those too that were applied and not taken up."""
    found: dict[str, RunRecord] = {}
    for item in cluster.find("ConfigMap", names.EXPERIMENT_LABEL):
        try:
            record = RunRecord.of(item)
            if record:
                found[record.run] = record
            else:
                waiting = configmap.applied(item)
                found.setdefault(waiting.run, waiting)
        except InputError as error:
            say(str(error))
    return [found[run] for run in sorted(found)]


def show_all(cluster: Cluster, console: Console) -> None:
    """Print a table of all runs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("experiment", "hash", "samples", *STAGES):
        table.add_column(heading, overflow="fold", no_wrap=heading != "experiment")
    for record in records(cluster):
        states = [record.state(stage) or "-" for stage in STAGES]
        table.add_row(record.run, record.hash[:8] or "-", _samples(record) or "-", *states)
    if table.row_count:
        _print(table, console)
    else:
        console.print(f"there are no experiments in the namespace {cluster.namespace}", markup=False)


def show(cluster: Cluster, record: RunRecord, console: Console) -> None:
    """Print how far each stage of one run is."""
    holder = lease.holder(cluster, record.run, Sightings())
    samples, at_work = _samples(record), f" (held by {holder})" if holder else ""
    count = f": {samples} samples" if samples else ""
    what = record.hash[:8] or "was applied, and is not taken up"
    console.print(f"{record.run} {what}{count}{at_work}", markup=False, highlight=False)
    if record.refused:
        console.print(f"experiment.yaml was changed, and can't be run: {record.refused}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("stage", "state", "since", "reason"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "reason")
    for stage, entry in record.stages.items():
        since = entry.get("finished", entry.get("started", ""))
        table.add_row(stage, entry["state"], since[:19].replace("T", " "), entry.get("reason", ""))
    _print(table, console)
    for entry in record.stages.values():
        if "job" in entry:
            console.print(f"kubectl logs -n {cluster.namespace} job/{entry['job']}", markup=False)


def _print(table: Table, console: Console) -> None:
    console.width = max(console.width, COLUMNS)
    console.print(table, crop=False)


def _samples(record: RunRecord) -> str:
    """Return how many samples a run has, as far as its record knows."""
    if record.summary:
        return f"{record.summary['found']}/{record.summary['expected']}"
    entry = record.stages.get("generate", {})
    return f"{entry['done']}/{entry['total']}" if "done" in entry else ""
