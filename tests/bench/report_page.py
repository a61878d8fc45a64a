"""How large a report of 9,233 answers is, how long it takes to make, and how soon Chromium shows it."""

import json
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import sync_playwright
from rich.console import Console

from emopfx.analysis import report_page
from tests.emopfx.analysis import made_up
from tests.emopfx.analysis.test_report_page import ARGUMENTS, CHROMIUM

QUESTIONS, WORDS = 1319, 200
ROUNDS = 3


def measure(root: Path) -> dict[str, Any]:
    """Make the experiment and its page, and open that."""
    layout, answers, report = made_up.make(root, QUESTIONS, WORDS)
    started = time.process_time()
    report_page.write(report, answers, layout)
    made = time.process_time() - started
    path = layout.report("html")
    return {
        "answers": report.found,
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "cpu_seconds_to_make": round(made, 1),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "openings": _open(path),
    }


def _open(path: Path) -> list[dict[str, float]]:
    """Open a page several times; the CPU time is the main thread's, which other work on the machine does not change."""
    openings = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for _ in range(ROUNDS):
            page = browser.new_page()
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            started = time.monotonic()
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_selector("#scatter svg")
            charts = time.monotonic() - started
            page.wait_for_selector("#list button")
            answers = time.monotonic() - started
            metrics = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
            found = {"charts": charts, "answers": answers, "cpu": metrics["TaskDuration"]}
            openings.append({name: round(seconds, 2) for name, seconds in found.items()})
            page.close()
        browser.close()
    return openings


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        Console(file=sys.stdout).print_json(json.dumps(measure(Path(folder))))
