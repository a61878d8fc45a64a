"""Looks at results folders while, or after, others work in them."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emopfx import record
from emopfx.config import STAGES
from emopfx.errors import InputError, RunError
from emopfx.layout import Layout
from emopfx.progress import Progress, say, show_table
from emopfx.record import Record

POLL_SECONDS = 1.0


def read(root: Path, name: str) -> Record:
    """Return the record of the experiment of that name.

    Raises:
        InputError: If there is none, with the names that there are.
    """
    found = Record.read(Layout(root, name))
    if found is None:
        names = ", ".join(record.layout.name for record in records(root)) or "none"
        raise InputError(f"there is no experiment {name} in {root}; there are: {names}")
    return found


def records(root: Path) -> Iterator[Record]:
    """Yield the record of every experiment in the results folder, by name."""
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        found = Record.read(Layout(root, folder.name))
        if found is not None:
            yield found


def done(found: Record) -> int:
    """Return how many of an experiment's samples are complete."""
    return sum((found.layout.sample(key) / "sample.json").exists() for key in found.sample_keys())


def show_all(root: Path, console: Console) -> None:
    """Print a table of all experiments."""
    table = Table("experiment", "hash", "samples", *STAGES)
    for found in records(root):
        states = [found.content["stages"].get(stage, {}).get("state", "-") for stage in STAGES]
        table.add_row(found.layout.name, found.hash[:8], f"{done(found)}/{len(found.sample_keys())}", *states)
    if table.row_count:
        show_table(console, table)
    else:
        console.print(f"there are no experiments in {root}", markup=False)


def show(found: Record, console: Console) -> None:
    """Print how far each stage of one experiment is."""
    at_work = " (a run is at work)" if record.running(found.layout) else ""
    title = f"{found.layout.name} {found.hash[:8]}: {done(found)} of {len(found.sample_keys())} samples{at_work}"
    table = Table("stage", "state", "since", "reason", title=title)
    for stage, entry in found.content["stages"].items():
        since = entry.get("finished", entry.get("started", ""))
        table.add_row(stage, entry["state"], since[:19].replace("T", " "), entry.get("reason", ""))
    console.print(table)


def monitor(root: Path, name: str) -> None:
    """Follow an experiment until all its samples are there.

    Raises:
        InputError: If there is no such experiment.
        RunError: If nobody works on it any more and samples are missing.
    """
    found = read(root, name)
    total, before = len(found.sample_keys()), done(found)
    with Progress("generate", total, before) as progress:
        while (count := done(found)) < total:
            progress.update(count)
            if not record.running(found.layout):
                # It may have ended just after the count.
                if done(found) == total:
                    break
                raise RunError(_stopped(read(root, name), count, total))
            time.sleep(POLL_SECONDS)
        progress.update(total)
    say(f"{name}: all {total} samples are there")


def _stopped(found: Record, count: int, total: int) -> str:
    entry = found.content["stages"].get("generate", {})
    reason = f": {entry['reason']}" if entry.get("state") == "failed" else ""
    return f"{found.layout.name}: no run is at work, {count} of {total} samples are there{reason}"
