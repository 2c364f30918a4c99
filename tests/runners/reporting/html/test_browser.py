"""The page in a real browser: opens without network, sorts, filters, toggles, hovers, prints."""

import contextlib
import json
import re
import threading

import chromium
import pytest

from runners.reporting.html import live
from runners.reporting.page import write_report
from runners.watch import Server

NEEDED = "needs the extra [browser]"
sync_api = pytest.importorskip("playwright.sync_api", reason=NEEDED)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=NEEDED)
pytest.importorskip("vl_convert")

PATH = chromium.find()
if PATH is None:
    pytest.skip("no Chromium on the path, nor in MOEUT_BROWSER", allow_module_level=True)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=PATH, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser):
    """Return a function that opens a file without network and waits until all is drawn."""
    contexts = []

    def open_file(path, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda m: page.complaints.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield open_file
    for context in contexts:
        context.close()


def add_depths(variant, seed, data):
    own = data["scores"][1]
    own["by_category"]["pp"] = {"exact_match": 0.25, "rows": 60}
    data["scores"].append(own | {"repeats": 8, "is_default_depth": False})


@pytest.fixture
def report(make_sweep, furnish):
    directory = make_sweep(
        transformer=[0.81, 0.80, 0.8125], moeut=[0.9, "loss is nan", 0.7], result=add_depths
    )
    row = {"split": "gen", "source": "x", "target": "a b", "finished": True, "category": "pp"}
    for path in directory.glob("*/seed0"):
        lines = [
            row | {"prediction": "a c", "correct": False},
            row | {"prediction": "a b", "correct": True},
        ]
        (path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(furnish(directory), with_figures=False)
    return directory / "report.html"


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)], ids=str
)
def test_opens_quietly_fits_and_is_accessible(open_page, report, scheme, width):
    page = open_page(report, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure[data-drawn]").count() == page.locator("figure").count() >= 10
    page.locator("main details").evaluate_all("all => all.forEach((each) => { each.open = true; })")
    page.wait_for_selector(".links table")
    violations = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []


def test_tables_sort_and_filter(open_page, report):
    page = open_page(report)
    table = page.locator(".table").first
    head = table.locator("thead button", has_text="gen exact_match").first
    names = table.locator("tbody tr th")
    assert names.all_inner_texts() == ["transformer", "moeut"]
    head.click()
    assert names.all_inner_texts() == ["moeut", "transformer"]
    assert table.locator("[aria-sort=ascending]").count() == 1
    head.press("Enter")  # by keyboard, the other way round
    assert names.all_inner_texts() == ["transformer", "moeut"]
    table.locator("input").fill("moe")
    assert table.locator("tbody tr:visible").count() == 1


def test_legends_toggle_and_points_tell_exact_values(open_page, report):
    page = open_page(report)
    figure = page.locator("figure[data-chart=scores-gen]")
    points = figure.locator(".mark-symbol.role-mark path")
    assert points.count() == 5
    figure.locator(".legend button", has_text="moeut").click()
    sync_api.expect(points).to_have_count(3)
    tip = pointed_at(points.nth(2))
    assert tip.locator("td").all_inner_texts() == ["transformer", "2", "0.8125"]


def pointed_at(mark):
    """Move onto a mark and return its box; anew if a figure drawn above has just moved the mark."""
    tip = mark.page.locator("#tip")
    for _ in range(9):
        mark.hover(force=True)
        with contextlib.suppress(sync_api.TimeoutError):
            tip.wait_for(timeout=2000)
            return tip
        mark.page.mouse.move(1, 1)
    raise AssertionError("no box at the mark")


@pytest.mark.parametrize("chart", ["scores-gen", "depth-gen"])
def test_hover_boxes_stay_within_a_phone(open_page, report, chart):
    page = open_page(report, viewport={"width": 390, "height": 844})
    points = page.locator(f"figure[data-chart={chart}] .mark-symbol.role-mark path")
    assert points.count() >= 5
    for number in range(points.count()):
        box = pointed_at(points.nth(number)).bounding_box()
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] + box["height"] <= 844
        assert box["width"] > 100
        page.mouse.move(1, 1)


def test_analyses_show_what_is_chosen(open_page, report):
    page = open_page(report)
    figure = page.locator("figure[data-analysis=lens-gen]")
    measure, lines = figure.locator("select").all()
    assert measure.locator("option").all_inner_texts() == ["accuracy", "loss"]
    assert lines.locator("option").all_inner_texts() == [
        "difficulty all",
        "difficulty 2",
        "transformer: each difficulty",
        "moeut: each difficulty",
    ]
    points = figure.locator(".mark-symbol.role-mark path")
    assert points.count() == 5 * 3  # runs with a result, applications
    measure.select_option("loss")
    sync_api.expect(points).to_have_count(5 * 2)  # the embedded input has none
    lines.select_option("moeut: each difficulty")
    sync_api.expect(points).to_have_count(2 * 2 * 2)  # seeds, difficulties, applications
    names = [text.strip() for text in figure.locator(".legend button").all_inner_texts()]
    assert names == ["difficulty all", "difficulty 2"]
    figure.locator("summary").click()
    figure.locator(".links table").wait_for()
    seeds = figure.locator(".links td:first-of-type").all_inner_texts()
    assert sorted(set(seeds)) == ["0", "2"]
    figure.locator(".legend button").first.click()
    sync_api.expect(points).to_have_count(4)


def test_maps_tell_their_cells_and_come_as_csv(open_page, report):
    page = open_page(report)
    figure = page.locator("figure[data-analysis=use-gen]")
    measure, model, head = figure.locator("select").all()
    assert measure.locator("option").all_inner_texts() == ["share", "chance"]
    measure.select_option("chance")
    model.select_option("moeut")
    head.select_option("head 1")
    cells = figure.locator(".mark-rect.role-mark path")
    sync_api.expect(cells).to_have_count(6)
    figure.locator("summary").click()
    figure.locator(".links table").wait_for()
    last = figure.locator(".links tbody tr").last.inner_text().split("\t")
    assert last[:4] == ["moeut", "0", "2", "x"]
    assert pointed_at(cells.last).locator("td").all_inner_texts() == last
    with page.expect_download() as download:
        figure.locator("a[download]").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "model,group,seed,expert,token,share,chance"
    assert len(lines) == 1 + 2 * 12
    assert any(re.fullmatch(rf"moeut,head 1,0,2,x,[\d.]+,{last[4]}", line) for line in lines)


def test_data_behind_a_figure_come_as_csv(open_page, report):
    page = open_page(report)
    link = page.locator("figure[data-chart=scores-gen] a[download]")
    with page.expect_download() as download:
        link.click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "series,seed,model,exact_match"
    assert "transformer,2,transformer,0.8125" in lines
    assert len(lines) == 6


def test_examples_filter(open_page, report):
    page = open_page(report)
    rows = page.locator("#examples-rows tr")
    assert rows.count() == 4
    page.locator("select[data-field=correct]").select_option("wrong")
    page.locator("select[data-field=model]").select_option("moeut")
    assert rows.all_inner_texts() == ["moeut\tgen\tpp\tx\ta b\ta c\ttoken 2 of 2: c instead of b"]


def test_a_sweep_that_is_watched_grows_on_the_page(browser, make_sweep, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0.2)
    directory = make_sweep(a=[0.5, 0.6])
    server = Server(str(directory), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    try:
        page.goto(server.address)
        page.wait_for_selector("html[data-ready]", state="attached")
        figure = page.locator("figure[data-chart=learning-train]")
        points = figure.locator(".mark-symbol.role-mark path")
        assert points.count() == 2 * 3
        figure.locator("summary").click()
        with open(next(directory.glob("a-*/seed1/metrics.jsonl")), "a") as file:
            file.write(json.dumps({"step": 9, "loss": 0.0625}) + "\n")
        sync_api.expect(points).to_have_count(2 * 3 + 1)
        last = figure.locator(".links tbody tr").last
        sync_api.expect(last).to_have_text("a190.0625")
    finally:
        page.close()
        server.shutdown()
        server.server_close()


def test_prints(open_page, report):
    page = open_page(report, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".filter").first.is_visible()
    assert page.pdf()[:5] == b"%PDF-"
    assert page.locator("#depth > details").get_attribute("open") is not None


def test_two_hundred_runs_open_in_two_seconds_and_ten_megabytes(make_sweep, furnish, browser):
    directory = make_sweep(
        **{f"variant_{n:02d}": [0.5 + n / 100] * 5 for n in range(40)}, result=add_depths
    )
    rows = "".join(json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, 1001))
    for path in directory.glob("*/seed*/metrics.jsonl"):
        path.write_text(rows)
    write_report(furnish(directory), with_figures=False)
    path = directory / "report.html"
    assert path.stat().st_size < 10e6
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-open]", state="attached")
    metrics = session.send("Performance.getMetrics")["metrics"]
    # Of the processor: others may use the machine, too.
    assert next(each["value"] for each in metrics if each["name"] == "TaskDuration") < 2
    page.wait_for_selector("html[data-ready]", state="attached")
    page.close()
