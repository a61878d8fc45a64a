"""The report as tables: on the terminal, and as Markdown, with the same figures."""

from collections.abc import Collection, Sequence
from itertools import islice

from rich import box
from rich.console import Console
from rich.table import Table

from emopfx.analysis.schema import Comparison, Effect, Estimate, ProbeTask, Report, Saes, Statistics, Summary
from emopfx.progress import show_table

SUMMARY = ("variant", "n", "accuracy", "format", "tokens", "truncated")
ACCURACY = ("pairs", "accuracy, points", "p", "p (Holm)", "detectable", "right→wrong", "wrong→right")
OTHERS = ("format, points", "p", "p (Holm)", "tokens", "p", "p (Holm)", "detectable")
# What of them has room in 80 columns.
BRIEF = ("accuracy, points", "p (Holm)", "lost", "won", "tokens", "p (Holm)")
TASK = ("task", "feature", "best place", "accuracy", "AUC", "shuffled", "majority")
FEATURE = ("layer", "hook point", "feature", "variant", "difference", "q")
FLIPS = ("variant", "change", "pairs", "samples")
UNREADABLE = ("sample", "what is wrong")
SHOWN = 10

Row = Sequence[str]


def show(report: Report, console: Console) -> None:
    """Print each variant by itself and against the baselines, no wider than 80 columns, and what is missing."""
    if report.statistics is None:
        return
    _print(console, _found(report), SUMMARY, [_summary(entry) for entry in report.statistics.variants])
    without = report.statistics.without_truncated or []
    for which, comparisons in (("", report.statistics.comparisons), (", without truncated pairs", without)):
        for baseline, entries in _by_baseline(comparisons):
            rows = [(entry.variant, *_brief(entry)) for entry in entries]
            _print(console, f"against {baseline}{which}", ("variant", *BRIEF), rows)
    for note in _notes(report):
        console.print(note, markup=False)


def _print(console: Console, title: str, headings: Row, rows: Sequence[Row]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    show_table(console, table)
    console.print()


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    config = report.config
    lines = [
        f"# {report.experiment}",
        "",
        f"Model {config['model']['name']} ({config['model']['dtype']}), dataset {report.dataset['path']}.",
        f"Config hash {report.hash[:8]}.",
        f"{report.found} of {report.expected} samples. Brackets hold 95 % intervals, clustered by question.",
    ]
    if report.statistics:
        lines += _statistics(report.statistics)
    if report.probes:
        lines += _table("Probes, each task at its best place", TASK, [_task(task) for task in report.probes.tasks])
    if report.sae:
        lines += _table(f"SAE features that differ most from {report.sae.baseline}", FEATURE, _features(report.sae))
    if report.activations and report.activations.unreadable:
        lines += _table("Unreadable activations", UNREADABLE, list(report.activations.unreadable.items()))
    for note in _notes(report):
        lines += ["", f"{note}."]
    return "\n".join(lines) + "\n"


def _statistics(statistics: Statistics) -> list[str]:
    lines = _table("Variants", SUMMARY, [_summary(entry) for entry in statistics.variants])
    for baseline, entries in _by_baseline(statistics.comparisons):
        rows = [(entry.variant, *_accuracy(entry)) for entry in entries]
        lines += _table(f"Accuracy against {baseline}", ("variant", *ACCURACY), rows)
        rows = [(entry.variant, *_others(entry)) for entry in entries]
        lines += _table(f"Format and length against {baseline}", ("variant", *OTHERS), rows)
        lines += _table(f"Answers that changed against {baseline}", FLIPS, _flips(entries))
    for baseline, entries in _by_baseline(statistics.without_truncated or []):
        rows = [(entry.variant, *_accuracy(entry)) for entry in entries]
        lines += _table(f"Accuracy against {baseline}, without truncated pairs", ("variant", *ACCURACY), rows)
    return [
        *lines,
        "",
        f"Intervals of differences: bootstrap over questions ({statistics.resamples} times, seed {statistics.seed}); "
        "where all questions differ alike, Clopper and Pearson's for shares, and none for tokens. "
        f"p: {_tests(statistics)}; two-sided, and adjusted by Holm's method over the variants of a table. "
        f"Detectable: the smallest difference found with {statistics.power:.0%} power at Holm's strictest level.",
    ]


def _tests(statistics: Statistics) -> str:
    used = {entry.accuracy.test for entry in statistics.comparisons}
    accuracy = "exact McNemar test" if used == {"mcnemar"} else "sign-flip permutation over questions"
    return f"{accuracy}, for tokens sign-flip permutation over questions"


def _table(title: str, headings: Row, rows: Sequence[Row]) -> list[str]:
    rule = f"| --- {'| ---: ' * (len(headings) - 1)}|"
    if not rows:
        return []
    return ["", f"## {title}", "", _row(headings), rule, *map(_row, rows)]


def _row(cells: Row) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _flips(entries: Sequence[Comparison]) -> list[Row]:
    return [
        (entry.variant, direction, str(len(keys)), ", ".join(keys))
        for entry in entries
        for direction, keys in (("right→wrong", entry.right_to_wrong), ("wrong→right", entry.wrong_to_right))
        if keys
    ]


def _by_baseline(comparisons: Sequence[Comparison]) -> list[tuple[str, list[Comparison]]]:
    names = dict.fromkeys(entry.baseline for entry in comparisons)
    return [(name, [entry for entry in comparisons if entry.baseline == name]) for name in names]


def _summary(entry: Summary) -> Row:
    return (
        entry.variant,
        str(entry.n),
        _percent(entry.accuracy),
        _percent(entry.format),
        _length(entry.completion_tokens),
        str(entry.truncated),
    )


def _accuracy(entry: Comparison) -> Row:
    effect = entry.accuracy
    lost, won = len(entry.right_to_wrong), len(entry.wrong_to_right)
    return (str(entry.pairs), *_tested(effect, 100), _detectable(effect, 100), str(lost), str(won))


def _others(entry: Comparison) -> Row:
    tokens = entry.completion_tokens
    return (*_tested(entry.format, 100), *_tested(tokens, 1), _detectable(tokens, 1))


def _brief(entry: Comparison) -> Row:
    accuracy, _, accuracy_holm = _tested(entry.accuracy, 100)
    tokens, _, tokens_holm = _tested(entry.completion_tokens, 1)
    lost, won = str(len(entry.right_to_wrong)), str(len(entry.wrong_to_right))
    return (accuracy, accuracy_holm, lost, won, tokens, tokens_holm)


def _tested(effect: Effect, scale: float) -> tuple[str, str, str]:
    return _difference(effect, scale), _p(effect.p), _p(effect.p_holm)


def _difference(effect: Effect, scale: float) -> str:
    value = f"{scale * effect.difference:+.1f}"
    if effect.low is None or effect.high is None:
        return value
    digits = 1 if scale > 1 else 0
    return f"{value} [{scale * effect.low:+.{digits}f}, {scale * effect.high:+.{digits}f}]"


def _detectable(effect: Effect, scale: float) -> str:
    return "-" if effect.detectable is None else f"{scale * effect.detectable:.1f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _percent(value: Estimate | None) -> str:
    if value is None:
        return "-"
    interval = "" if value.low is None or value.high is None else f" [{100 * value.low:.0f}, {100 * value.high:.0f}]"
    return f"{100 * value.value:.1f}%{interval}"


def _length(value: Estimate | None) -> str:
    if value is None:
        return "-"
    interval = "" if value.low is None or value.high is None else f" [{value.low:.0f}, {value.high:.0f}]"
    # Of a thousand tokens, tenths say nothing, and 80 columns have no room for them.
    return f"{value.value:.{0 if value.value >= 1000 else 1}f}{interval}"


def _task(task: ProbeTask) -> Row:
    best = max(task.probes, key=lambda probe: probe.accuracy.value)
    return (
        task.name,
        task.feature,
        f"layer {best.layer}, {best.hook_point}",
        _percent(best.accuracy),
        f"{best.auc.value:.2f}",
        _percent(best.shuffled),
        f"{100 * task.majority:.1f}%",
    )


def _features(saes: Saes) -> list[Row]:
    rows: list[Row] = []
    for sae in saes.saes:
        for found in sae.features[:SHOWN]:
            difference = f"{found.difference.value:+.3g}"
            rows.append((str(sae.layer), sae.hook_point, str(found.feature), found.variant, difference, _p(found.q)))
    return rows


def _found(report: Report) -> str:
    return f"{report.experiment}: {report.found} of {report.expected} samples"


def _notes(report: Report) -> list[str]:
    notes = []
    cut = sum(entry.truncated for entry in report.statistics.variants) if report.statistics else 0
    if cut:
        notes.append(f"answers cut at max_tokens: {cut}")
    if report.activations and report.activations.unreadable:
        unreadable, answers = report.activations.unreadable, report.activations.answers
        notes.append(f"the activations of {len(unreadable)} of {answers} answers can't be read: {_some(unreadable)}")
    for entry in report.probes.skipped if report.probes else []:
        notes.append(f"not probed: {entry.name} ({entry.feature}): {entry.reason}")
    for reason in report.sae.skipped if report.sae else []:
        notes.append(f"no SAE: {reason}")
    if report.missing:
        notes.append(f"{len(report.missing)} of {report.expected} samples are missing: {_some(report.missing)}")
    return notes


def _some(keys: Collection[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(islice(keys, SHOWN)) + more
