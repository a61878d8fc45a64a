"""The report page in a real Chromium, from a file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from emopfx.analysis import report_page
from tests.emopfx.analysis import made_up

CHROMIUM = "/usr/bin/chromium"
# Chromium must not reach for the network on its own.
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
QUESTIONS = 130


# The tests that name the browser need Debian's chromium.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout, answers, report = made_up.make(tmp_path_factory.mktemp("results"), QUESTIONS, words=12)
    report_page.write(report, answers, layout)
    return layout.report("html")


@dataclass
class Opened:
    """A page, with what it complained about and what it asked the network for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def open_page(browser: Browser, path: Path, width: int, *, dark: bool = False) -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    opened = Opened(page)
    page.on("console", lambda message: opened.errors.append(message.text))
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#list button")
    return opened


@pytest.fixture
def opened(browser: Browser, path: Path) -> Iterator[Opened]:
    opened = open_page(browser, path, 1280)
    yield opened
    assert opened.errors == []
    assert opened.requests == [path.as_uri()]
    opened.page.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_at_any_width_and_in_both_themes(browser: Browser, path: Path, width: int, dark: bool) -> None:
    opened = open_page(browser, path, width, dark=dark)
    assert opened.errors == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    red, *_ = opened.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red < 60) == dark
    opened.page.close()


def test_every_chart_has_labels_units_and_a_name(opened: Opened) -> None:
    for chart, labels in {
        "forest": ["percentage points"],
        "scatter": ["mean completion tokens", "accuracy, %"],
        "curves": ["layer", "held-out accuracy, %"],
        "heatmap": ["layer", "selectivity, percentage points"],
    }.items():
        svg = opened.page.locator(f"#{chart} svg")
        assert svg.get_attribute("aria-label")
        for label in labels:
            expect(svg).to_contain_text(label)


def test_tables_have_the_reports_figures(opened: Opened, path: Path) -> None:
    report = json.loads(opened.page.locator("#report").text_content() or "")
    control = report["statistics"]["variants"][0]
    row = opened.page.locator("#headline tbody tr").first
    expect(row).to_contain_text(f"{100 * control['accuracy']['value']:.1f}")
    assert opened.page.locator("#comparison tbody tr").count() == 6
    opened.page.select_option("#baseline", "neutral")
    opened.page.select_option("#measure", "completion_tokens")
    assert opened.page.locator("#comparison tbody tr").count() == 5
    expect(opened.page.locator("#forest svg")).to_contain_text("difference to neutral, tokens")
    opened.page.check("#uncut")
    pairs = report["statistics"]["without_truncated"][-1]["pairs"]
    expect(opened.page.locator("#comparison tbody tr").last.locator("td").nth(1)).to_have_text(str(pairs))
    expect(opened.page.locator("#saes tbody tr")).to_have_count(12)


def test_the_probes_shown_are_those_of_the_chosen_task(opened: Opened) -> None:
    before = opened.page.locator("#curves svg").inner_html()
    opened.page.select_option("#task", label="calm vs control (last prompt)")
    assert opened.page.locator("#curves svg").inner_html() != before
    opened.page.select_option("#score", "auc")
    expect(opened.page.locator("#heatmap svg")).to_contain_text("AUC, 0.5 is chance")
    expect(opened.page.locator("#unprobed")).to_contain_text("correct (last prompt): every answer is right")
    expect(opened.page.locator("#unprobed")).to_contain_text("calm/x_0003: there is no file")
    expect(opened.page.locator("#readable")).to_have_text("909 of 910 answers have activations that can be read.")
    rows = opened.page.locator("#values tbody tr")
    expect(rows).to_have_count(made_up.LAYERS * len(made_up.HOOKS))
    report = json.loads(opened.page.locator("#report").text_content() or "")
    first = report["probes"]["tasks"][1]["probes"][0]
    expect(rows.first).to_contain_text(f"{100 * first['accuracy']['value']:.1f}")


def test_answers_are_searched_filtered_and_compared(opened: Opened) -> None:
    page = opened.page
    status = page.locator("#matches")
    expect(status).to_have_text(f"{QUESTIONS} of {QUESTIONS} questions")
    expect(page.locator("#list li")).to_have_count(101)
    page.locator("#list .more button").click()
    expect(page.locator("#list li")).to_have_count(QUESTIONS)
    page.fill("#search", "x_0017")
    expect(status).to_have_text(f"1 of {QUESTIONS} questions")
    expect(page.locator("#sample h3").first).to_have_text("x_0017")
    # A question's text is shown as it is.
    expect(page.locator("#sample")).to_contain_text("What is <b>x_0017</b>?")
    page.fill("#search", "")
    page.select_option("#right", "calm")
    page.select_option("#filter", "lost")
    report = json.loads(page.locator("#report").text_content() or "")
    (calm,) = (e for e in report["statistics"]["comparisons"] if (e["variant"], e["baseline"]) == ("calm", "control"))
    expect(status).to_have_text(f"{len(calm['right_to_wrong'])} of {QUESTIONS} questions")
    answers = page.locator("#sample .answer")
    expect(answers).to_have_count(2)
    expect(answers.first).to_contain_text("control: right")
    expect(answers.last).to_contain_text("calm: wrong")


def test_the_list_is_walked_by_keyboard(opened: Opened) -> None:
    opened.page.locator("#list button").first.focus()
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowDown")
    expect(opened.page.locator("#sample h3").first).to_have_text("x_0003")
    opened.page.keyboard.press("ArrowUp")
    expect(opened.page.locator("#sample h3").first).to_have_text("x_0002")


def test_tokens_are_coloured_by_their_projection(opened: Opened, path: Path) -> None:
    page = opened.page
    page.select_option("#colour", made_up.PROBE)
    lines = (path.parent / "artifacts" / "probes" / "projections.jsonl").read_text().splitlines()
    line = next(found for found in map(json.loads, lines) if found["key"] == "control/x_0001")
    tokens = page.locator("#sample .answer").first.locator(".token")
    assert tokens.all_text_contents() == line["tokens"]
    titles = tokens.evaluate_all("found => found.map(token => token.title)")
    shown = [float(title.replace("−", "-")) for title in titles]
    expected = [max(-3, min(3, value)) for value in line["values"][made_up.PROBE]]
    assert shown == pytest.approx(expected, abs=0.13)


def test_a_report_of_all_of_gsm8k_stays_under_20_megabytes(tmp_path: Path) -> None:
    layout, answers, report = made_up.make(tmp_path, 100, words=200)
    report_page.write(report, answers, layout)
    assert layout.report("html").stat().st_size * 1319 / 100 < 20_000_000


def test_answers_that_find_no_room_are_left_out_and_that_is_said(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, answers, report = made_up.make(tmp_path, 40, words=30)
    report_page.write(report, answers, layout)
    whole = layout.report("html").stat().st_size
    monkeypatch.setattr(report_page, "MOST_BYTES", whole - 2_000)
    report_page.write(report, answers, layout)
    assert whole - 12_000 < layout.report("html").stat().st_size <= whole - 2_000
    assert "report.html has room for the answers to" in capsys.readouterr().err
    opened = open_page(browser, layout.report("html"), 1280)
    expect(opened.page.locator("#matches")).to_contain_text("of 40)")
    assert opened.page.locator("#list button").count() < 40
    opened.page.close()


def test_a_prefix_that_looks_like_a_place_of_the_page_is_shown_as_it_is(browser: Browser, tmp_path: Path) -> None:
    layout, answers, report = made_up.make(tmp_path, 4, words=5)
    config = {
        **report.config,
        "variants": [*report.config["variants"][1:], {"name": "control", "prefixes": ["@answers@"]}],
    }
    report_page.write(report.model_copy(update={"config": config}), answers, layout)
    opened = open_page(browser, layout.report("html"), 1280)
    assert opened.errors == []
    expect(opened.page.locator("#provenance")).to_contain_text("@answers@")
    opened.page.close()


def test_unreadable_activations_are_shown_where_nothing_was_probed(browser: Browser, tmp_path: Path) -> None:
    layout, answers, report = made_up.make(tmp_path, 4, words=5)
    report_page.write(report.model_copy(update={"probes": None, "sae": None}), answers, layout)
    # Projections of an earlier analysis are not this report's.
    opened = open_page(browser, layout.report("html"), 1280)
    expect(opened.page.locator("#activations")).to_be_visible()
    expect(opened.page.locator("#unprobed summary")).to_have_text(["Unreadable activations: 1"])
    expect(opened.page.locator("#colouring")).to_be_hidden()
    expect(opened.page.locator("#probes")).to_be_hidden()
    opened.page.close()


def test_a_changed_answer_is_a_click_away(opened: Opened) -> None:
    page = opened.page
    report = json.loads(page.locator("#report").text_content() or "")
    entry = next(e for e in report["statistics"]["comparisons"] if e["right_to_wrong"])
    (baseline, variant), ids = (entry["baseline"], entry["variant"]), entry["right_to_wrong"]
    details = page.locator("#flips details", has_text=f"{variant}, right → wrong: {len(ids)}")
    details.locator("summary").click()
    assert details.locator("button").all_text_contents() == ids
    details.locator("button").first.click()
    expect(page.locator("#sample h3").first).to_have_text(ids[0])
    expect(page.locator("#sample .answer").first).to_contain_text(f"{baseline}: right")
    expect(page.locator("#sample .answer").last).to_contain_text(f"{variant}: wrong")


def test_answers_that_cannot_be_unpacked_are_said_to_be_so(browser: Browser, path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = path.read_text()
    start = text.index('id="answers">') + len('id="answers">')
    broken.write_text(text[:start] + "AAAA" + text[start + 4 :])
    page = browser.new_page()
    page.goto(broken.as_uri())
    expect(page.locator("#matches")).to_contain_text("The answers can't be shown")
    page.close()


@pytest.mark.parametrize(("low", "high"), [(0.61, 0.64), (12.2, 12.9), (-0.004, 0.003), (0, 1), (40, 230), (-3e5, 2e5)])
def test_no_two_ticks_have_one_text(opened: Opened, low: float, high: float) -> None:
    ticks = opened.page.evaluate("([low, high]) => ticks(low, high, 6)", [low, high])
    texts = [text for _, text in ticks]
    assert 3 <= len(texts) == len(set(texts))
    for value, text in ticks:
        assert float(text.replace("−", "-")) == pytest.approx(value, abs=1e-9)
