"""The page of a run's report in a real Chromium, with tokens coloured from the activations that the run left."""

from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from tests.emopfx.analysis.test_report_page import ARGUMENTS, CHROMIUM, open_page
from tests.integration.test_closed_loop import run


def test_a_runs_report_opens_and_shows_its_answers(tmp_path: Path) -> None:
    report = run(tmp_path, "seen", ["control", "calm"], analysis={"probes": {"features": ["last_prompt"]}})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = open_page(browser, tmp_path / "seen" / "report.html", 1280)
        page = opened.page
        accuracy = report["statistics"]["variants"][0]["accuracy"]["value"]
        expect(page.locator("#headline tbody tr").first).to_contain_text(f"{100 * accuracy:.1f}")
        expect(page.locator("#list button")).to_have_count(12)
        (shown,) = report["probes"]["projections"]
        page.select_option("#colour", shown)
        expect(page.locator("#sample [style*=background]").first).to_be_visible()
        page.fill("#search", "nothing that anybody asked")
        expect(page.locator("#list button")).to_have_count(0)
        assert opened.errors == []
        browser.close()
