"""Every number on the page stands in the report's files, and users' text stays text."""

import csv
import functools
import json
import re
import sys

import pytest

from runners.reporting.html import contents, document
from runners.reporting.html.charts import all_charts
from runners.reporting.page import write_report
from runners.reporting.results import load

pytest.importorskip("vl_convert")


def deepen(variant, seed, data):
    """Give scores at other depths, and more than one category."""
    own = data["scores"][1]
    own["by_category"]["pp_recursion"] = {"exact_match": 0.25 + seed / 100, "rows": 60}
    for repeats in (2, 8):
        value = own["metrics"]["exact_match"] * 0.9 + repeats / 1000
        data["scores"].append(
            own
            | {"repeats": repeats, "is_default_depth": False}
            | {"metrics": {"exact_match": value, "token_accuracy": 0.5}}
            | {
                "by_difficulty": {
                    "2": {"exact_match": value, "rows": 60},
                    "10": {"exact_match": 0.125 + seed / 64, "rows": 40},
                }
            }
        )


@pytest.fixture
def directory(make_sweep):
    return make_sweep(
        transformer=[0.81, 0.80, 0.82, 0.79, 0.83],
        moeut=[0.9, "loss is nan", 0.95, 0.93, 0.94],
        result=deepen,
    )


@functools.lru_cache(maxsize=2)
def _rows(path, changed):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(path):
    """Return the rows of a file, read again where it has changed."""
    return _rows(path, path.stat().st_mtime_ns)


def embedded(directory):
    page = (directory / "report.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))


def values_of(directory, chart, series, seed, x):
    """Return what the file that a figure names holds for one of its points."""
    where = {key: str(value) for key, value in chart.get("where", {}).items()}
    if chart["source"] == "metrics.jsonl":
        path = next(directory.glob(f"{series}-*/seed{seed}/metrics.jsonl"))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [r for r in rows if r["step"] == x and r.get("split") == where.get("split")]
        return {row.get("metrics", row).get(chart["metric"]) for row in rows}
    wanted = where | {"seed": str(seed), "metric": chart["metric"]}
    if chart["x"] == "repeats":
        wanted |= {"variant": series, "repeats": str(x)}
    elif not series.endswith(" repeats"):
        wanted |= {"variant": series, "repeats": "4"}
    else:
        wanted |= {"repeats": series.removesuffix(" repeats")}
    if chart["source"] == "breakdown.csv":
        wanted["row"] = x if isinstance(x, str) else f"{x:g}"
    return {
        float(row["value"])
        for row in read(directory / chart["source"])
        if wanted.items() <= row.items()
    }


def untraced(directory):
    """Return what the page's figures show that the files they name do not hold."""
    points = [
        (chart, chart["series"][series], seed, x, value)
        for chart in embedded(directory)["charts"]
        for series, seed, x, value in chart["rows"]
    ]
    return [
        (chart["name"], *point, value)
        for chart, *point, value in points
        if values_of(directory, chart, *point) != {value}
    ]


def test_every_number_of_a_figure_stands_in_the_file_that_it_names(directory):
    write_report(directory, with_figures=False)
    sections = {chart["section"] for chart in embedded(directory)["charts"]}
    assert sections == {"scores", "groups", "depth", "learning"}
    assert untraced(directory) == []
    # The test can fail: one number changed in the file is found.
    path = directory / "results.csv"
    path.write_text(path.read_text().replace("0.95", "0.96"))
    assert {entry[-1] for entry in untraced(directory)} == {0.95}


def test_every_number_of_the_comparison_follows_from_the_rows(directory):
    write_report(directory, with_figures=False)
    page = (directory / "report.html").read_text(encoding="utf-8")
    table = page[page.index('<h3 id="t-demo-main">') :].split("</table>")[0]
    cells = [
        re.findall(r"<t[hd][^>]*>(?:<strong>)?([^<]*)", row) for row in table.split("<tr>")[2:]
    ]
    rows = [
        row
        for row in read(directory / "results.csv")
        if row["is_default_depth"] == "true" and row["metric"] == "exact_match"
    ]
    for shown in cells:
        values = [
            float(r["value"]) for r in rows if (r["variant"], r["split"]) == (shown[0], "gen")
        ]
        mean = sum(values) / len(values)
        std = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
        assert f"{mean:.3f} ± {std:.3f}" in shown
        assert " ".join(f"{value:.3f}" for value in values) in shown
        own = next(row for row in rows if row["variant"] == shown[0])
        for name in ("model_parameters", "macs_per_token", "tokens_seen"):
            assert f"{int(own[name]):,}" in shown


def test_headline_claims_what_the_test_shows(directory):
    found = contents.headline(load(directory))
    assert found.claims == [
        "moeut (0.930) is better than transformer by 0.120 (p = 0.016, Holm-corrected)."
    ]
    assert "1 runs are missing; means are over the others." in found.no_claims
    assert any(line.startswith("Not matched: MACs per token") for line in found.budget)


@pytest.mark.parametrize(
    ("target", "written", "finished", "expected"),
    [
        ("a b c", "a x c", True, "token 2 of 3: x instead of b"),
        ("a b c", "b a c", True, "token 1 of 3: b instead of a; 2 tokens differ"),
        ("a b c", "a b", True, "stops after 2 of 3 tokens"),
        ("a b", "a b c d", False, "goes on for 2 tokens after the target"),
        ("a b", "a b", False, "the end was not written"),
        ("a b", "", True, "nothing was written"),
    ],
)
def test_what_went_wrong(target, written, finished, expected):
    row = {"target": target, "prediction": written, "finished": finished}
    assert contents.what_went_wrong(row) == expected


def test_examples_are_few_of_each_kind_and_damaged_lines_are_passed_over(make_sweep):
    directory = make_sweep(a=[0.5, 0.6])
    row = {"split": "gen", "source": "x", "target": "y", "finished": True, "category": "c"}
    lines = [json.dumps(row | {"prediction": "z", "correct": False})] * 9
    lines += [json.dumps(row | {"prediction": "y" * 999, "correct": True})] * 9 + ['{"split": "g']
    for seed in (0, 1):
        path = next(directory.glob(f"a-*/seed{seed}")) / "predictions.jsonl"
        path.write_text("\n".join(lines))
    found = contents.examples(load(directory))
    assert [entry["correct"] for entry in found] == [False] * 4 + [True] * 2
    assert {entry["seed"] for entry in found} == {0}
    assert found[-1]["prediction"].endswith("… (999 characters)")


def test_text_of_users_is_no_markup(make_sweep):
    def rename(variant, seed, data):
        names = ["</script><script>alert(1)</script>", "a & b"]
        cell = {"exact_match": 0.5, "rows": 20}
        data["scores"][1]["by_category"] = dict.fromkeys(names, cell)

    directory = make_sweep("<b>", a=[0.5], result=rename)
    write_report(directory, with_figures=False)
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<h1>&lt;b&gt;</h1>" in page
    assert "http-equiv" not in page.split("<style>")[0]


def test_configs_are_compared_key_by_key():
    table = contents.differences_table(
        {"a": "model: {d: 1, e: 2}\nseed: 0", "b": "model: {d: 3, e: 2}\nseed: 1"}
    )
    assert table.columns == ["key", "a", "b"]
    assert table.rows == [["model.d", "1", "3"]]
    assert contents.differences_table({"a": "x: 1", "b": "x: 1"}) is None


def test_no_more_points_are_drawn_than_a_page_can_hold(make_sweep):
    directory = make_sweep(a=[0.5])
    rows = "".join(json.dumps({"step": n, "loss": 1 / n}) + "\n" for n in range(1, 5001))
    next(directory.glob("a-*/seed0/metrics.jsonl")).write_text(rows)
    (chart,) = [c for c in all_charts(load(directory)) if c.name == "learning-train"]
    steps = [row[2] for row in chart.rows]
    assert len(steps) == 60
    assert (steps[0], steps[-1]) == (1, 5000)


def test_without_the_library_one_line_says_what_to_do(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    document.plotting_library.cache_clear()
    _, trouble = write_report(directory, with_figures=False)
    document.plotting_library.cache_clear()
    assert trouble == document.NO_LIBRARY
    assert (directory / "results.csv").is_file()
