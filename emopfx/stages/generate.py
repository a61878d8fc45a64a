"""Gets the answers that are missing, and keeps each one with its breadcrumb as soon as it is there."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emopfx.config import Experiment
from emopfx.errors import RunError
from emopfx.layout import Layout, read_json, write_json
from emopfx.progress import Progress, say
from emopfx.record import now
from emopfx.sampling import SamplingError, VllmClient
from emopfx.units import Unit, manifest_entry, ndif_request, save

SHOWN_FAILURES = 10


@dataclass
class Outcome:
    """What came of the stage: how many samples were kept, generated or not tried, and failures by key."""

    total: int
    kept: int = 0
    generated: int = 0
    retries: int = 0
    not_tried: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def split_finished(
    units: list[Unit], layout: Layout, check: Callable[[dict[str, Any] | None], str | None]
) -> tuple[list[Unit], dict[str, str]]:
    """Return the units that are still to do, and what is wrong (by key) with those that once were done.

    Args:
        units: All units.
        layout: Where the results are.
        check: Returns what is wrong with the activations of a finished sample, by its breadcrumb (None without any);
            None if nothing is.
    """
    done: set[str] = set()
    broken: dict[str, str] = {}
    for unit, sample in _finished(units, layout):
        reason = check(sample["breadcrumb"])
        if reason is None:
            done.add(unit.key)
        else:
            broken[unit.key] = reason
    return [unit for unit in units if unit.key not in done], broken


def nothing(entry: dict[str, Any]) -> None:
    """Do nothing with a saved answer."""


async def generate(
    experiment: Experiment,
    units: list[Unit],
    todo: list[Unit],
    layout: Layout,
    url: str | None,
    saved: Callable[[dict[str, Any]], None] = nothing,
) -> Outcome:
    """Get the answers that are missing.

    A failed sample never costs another one, and whatever stops the stage, finished samples stay.

    Args:
        experiment: The config.
        units: All units.
        todo: Those of them that are still to do.
        layout: Where the results go.
        url: Where the server is; None only if there is nothing to do.
        saved: Called with the manifest entry of each answer that is kept with activations.

    Raises:
        RunError: If more samples failed than `generation.max_failures`.
    """
    outcome = Outcome(total=len(units), kept=len(units) - len(todo))
    ahead = f"{len(todo)} to do" if todo else "0 requests sent"
    say(f"generate: {outcome.kept} of {outcome.total} already done, {ahead}")
    try:
        if todo and url:
            await _work(experiment, todo, layout, url, outcome, saved)
    finally:
        write_manifest(layout, units)
    _report(outcome, experiment.generation.max_failures)
    return outcome


async def _work(
    experiment: Experiment,
    todo: list[Unit],
    layout: Layout,
    url: str,
    outcome: Outcome,
    saved: Callable[[dict[str, Any]], None],
) -> None:
    sampling = experiment.generation
    workers = min(sampling.concurrency, len(todo))
    parameters = sampling.model_dump(include={"temperature", "top_p", "max_tokens"})
    # Made before anything is asked: what is wrong in one of them is wrong with the config.
    num_layers = (read_json(layout.record) or {}).get("model", {}).get("num_layers")
    queue = iter([(unit, ndif_request(unit, experiment, layout, num_layers)) for unit in todo])
    client = VllmClient(experiment.model.name, url, connections=workers, **parameters)

    async def work() -> None:
        for unit, request in queue:
            try:
                started = now()
                answer = await client.ask(unit.messages, unit.seed, request)
                if experiment.capture.enabled and not answer.ndif.get("save_dir"):
                    raise SamplingError("the server captured nothing")
                # Other answers are read while this one waits for the disk.
                await asyncio.to_thread(save, unit, answer, layout, url, started)
            except (SamplingError, OSError) as error:
                outcome.failures[unit.key] = str(error)
                progress.advance(failed=True)
                if isinstance(error, OSError) or error.hopeless:
                    # It would be the same for all: empty the queue that the workers share.
                    outcome.not_tried += len(list(queue))
            else:
                outcome.generated += 1
                progress.advance()
                if answer.ndif.get("save_dir"):
                    saved(manifest_entry(answer.ndif))

    with Progress("generate", outcome.total, outcome.kept) as progress:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work())
        finally:
            outcome.retries = client.provider.retries
            await client.provider.aclose()


def _finished(units: list[Unit], layout: Layout) -> list[tuple[Unit, dict[str, Any]]]:
    """Return the units that have a sample.json of this config, with its content."""
    found = ((unit, layout.finished(unit.key, unit.config_hash)) for unit in units)
    return [(unit, sample) for unit, sample in found if sample is not None]


def write_manifest(layout: Layout, units: list[Unit]) -> None:
    """Write activations_manifest.json from the samples that are complete; what was pushed or pulled stays known."""
    before = read_json(layout.manifest) or {}
    manifest = {
        unit.key: _entry(before.get(unit.key, {}), breadcrumb)
        for unit, sample in _finished(units, layout)
        if (breadcrumb := sample["breadcrumb"])
    }
    write_json(layout.manifest, manifest)


def _entry(before: dict[str, Any], breadcrumb: dict[str, Any]) -> dict[str, Any]:
    same = all(before.get(key) == breadcrumb[key] for key in ("save_dir", "files"))
    return before if same else manifest_entry(breadcrumb)


def _report(outcome: Outcome, max_failures: int) -> None:
    if outcome.generated:
        repeated = f"{outcome.retries} repeated requests"
        say(f"generate: {outcome.kept} kept, {outcome.generated} generated, {repeated}")
    if not outcome.failures:
        return
    for key, reason in list(outcome.failures.items())[:SHOWN_FAILURES]:
        say(f"generate: {key} failed: {reason}")
    if len(outcome.failures) > SHOWN_FAILURES:
        say(f"generate: and {len(outcome.failures) - SHOWN_FAILURES} more")
    failed = len(outcome.failures) + outcome.not_tried
    if failed > max_failures:
        tried = f" ({outcome.not_tried} not tried)" if outcome.not_tried else ""
        first = next(iter(outcome.failures.values()))
        raise RunError(
            f"{failed} of {outcome.total} samples failed{tried}, more than generation.max_failures "
            f"({max_failures}); the first said: {first}"
        )
