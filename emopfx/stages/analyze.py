"""Makes the report: its parts in order, each done only if what it depends on has changed."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from emopfx import __version__
from emopfx.analysis import parts, report_page, tables
from emopfx.analysis.answers import Answers
from emopfx.analysis.parts import Part
from emopfx.analysis.schema import VERSION, Report, Sections
from emopfx.errors import InputError, RunError
from emopfx.layout import write_json, write_text
from emopfx.record import Record, now


def analyze(record: Record) -> Report:
    """Make the report of an experiment from its finished answers, and write it beside them.

    Raises:
        RunError: If there is no finished answer at all.
    """
    answers = Answers.read(record)
    if not answers.finished:
        raise RunError(f"there are no finished samples in {record.layout.folder}; emopfx generate makes them")
    head, found = frame(record, answers), Sections()
    report = Report(**head)
    try:
        for part in _parts(record, answers):
            found = parts.join(found, parts.sections(part, record.layout.artifacts))
            report = Report(**head, **dict(found))
            write_json(record.layout.report("json"), report.model_dump(mode="json"))
            write_text(record.layout.report("md"), tables.markdown(report))
    finally:
        # What is done is seen even if a later part fails.
        if report.statistics:
            report_page.write(report, answers, record.layout)
    return report


def _parts(record: Record, answers: Answers) -> Iterator[Part]:
    # numpy and scipy take seconds to import, and most commands need neither.
    from emopfx.analysis import statistics

    yield statistics.part(answers)
    settings = record.content["config"].get("analysis", {})
    asked = [f"analysis.{name}" for name, value in settings.items() if value]
    if asked and find_spec("torch") is None:
        raise InputError(f"{' and '.join(asked)} can't be done without torch: pip install 'emopfx[analysis]'")
    if asked:
        yield from _parts_of_activations(record, answers, settings)


def _parts_of_activations(record: Record, answers: Answers, settings: dict[str, Any]) -> Iterator[Part]:
    from emopfx.analysis import probes, saes
    from emopfx.analysis.captured import Captured
    from emopfx.storage.source import PushedFiles

    config = record.content["config"]
    s3 = (config.get("storage") or {}).get("s3") or {}
    with PushedFiles(record.layout, s3.get("endpoint_url")) as source:
        captured = Captured.of(answers, record.layout.root, source, expected=config["capture"]["enabled"])
        if settings.get("probes"):
            yield probes.part(record, captured)
        if settings.get("sae"):
            yield from saes.parts(record, captured)


def frame(record: Record, answers: Answers) -> dict[str, Any]:
    """Return a report without the sections of its parts."""
    content = record.content
    return {
        "version": VERSION,
        "experiment": record.layout.name,
        "hash": record.hash,
        "created": now(),
        "emopfx": __version__,
        **{key: content[key] for key in ("config", "model", "server", "run")},
        "dataset": {key: value for key, value in content["dataset"].items() if key != "sample_ids"},
        "expected": len(answers.expected),
        "found": len(answers.finished),
        "missing": answers.missing,
    }
