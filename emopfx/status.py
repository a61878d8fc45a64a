"""Looks at results folders while, or after, others work in them."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
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


def show_all(root: Path, console: Console) -> None:
    """Print a table of all experiments."""
    table = _table("experiment", "hash", "samples", *STAGES)
    for found in records(root):
        states = [found.state(stage) or "-" for stage in STAGES]
        total = len(found.sample_keys())
        table.add_row(found.layout.name, found.hash[:8], f"{total - len(found.unfinished())}/{total}", *states)
    if table.row_count:
        show_table(console, table)
    else:
        console.print(f"there are no experiments in {root}", markup=False)


def show(found: Record, console: Console) -> None:
    """Print how far each stage of one experiment is."""
    at_work = " (a run is at work)" if record.running(found.layout) else ""
    total = len(found.sample_keys())
    count = f"{total - len(found.unfinished())} of {total} samples"
    console.print(f"{found.layout.name} {found.hash[:8]}: {count}{at_work}", markup=False, highlight=False)
    table = _table("stage", "state", "since", "reason")
    for stage, entry in found.content["stages"].items():
        since = entry.get("finished", entry.get("started", ""))[:19].replace("T", " ")
        table.add_row(stage, found.state(stage), since, escape(entry.get("reason", "")))
    console.print(table)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading != "reason")
    return table


def monitor(root: Path, name: str) -> None:
    """Follow the run that is at work on an experiment until it has ended.

    Raises:
        InputError: If there is no such experiment.
        RunError: If samples are missing at the end.
    """
    layout = Layout(root, name)
    # A run that has just begun reads its questions first.
    while Record.read(layout) is None and record.running(layout):
        time.sleep(POLL_SECONDS)
    found = read(root, name)
    total, left = len(found.sample_keys()), found.unfinished()
    with Progress("generate", total, total - len(left)) as progress:
        at_work = True
        while at_work:
            # Asked before samples are counted, so that the last ones are counted too.
            at_work = record.running(layout)
            before, found = found.hash, read(root, name)
            if found.hash != before:
                left = found.sample_keys()
                total = len(left)
                progress.expect(total)
            left = [key for key in left if layout.finished(key, found.hash) is None]
            progress.update(total - len(left))
            if at_work:
                time.sleep(POLL_SECONDS)
    if left:
        raise RunError(_stopped(found, total - len(left), total))
    say(f"{name}: all {total} samples are there")


def _stopped(found: Record, count: int, total: int) -> str:
    entry = found.content["stages"].get("generate", {})
    reason = f": {entry['reason']}" if entry.get("state") == "failed" else ""
    return f"{found.layout.name}: no run is at work, {count} of {total} samples are there{reason}"
