"""The files of a report: every number, the same bytes each time."""

import csv
import json

import pytest

from runners.reporting.page import write_report

STEADY = [0.81, 0.80, 0.82, 0.79, 0.83]


@pytest.fixture
def directory(make_sweep):
    return make_sweep(transformer=STEADY, moeut=[0.9, "loss is nan", None, 0.7, 0.8])


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_row_per_run_and_metric(directory):
    write_report(directory, with_figures=False)
    rows = read(directory / "results.csv")
    done = [row for row in rows if row["status"] == "done"]
    assert len(done) == 8 * 2 * 2
    assert [row["status"] for row in rows if row["status"] != "done"] == ["failed", "missing"]
    row = next(r for r in done if (r["variant"], r["seed"], r["split"]) == ("moeut", "3", "gen"))
    assert (row["metric"], row["value"], row["repeats"]) == ("exact_match", "0.7", "4")
    assert row["is_default_depth"] == "true"
    assert not any("second" in name or "time" in name for name in rows[0])
    breakdown = read(directory / "breakdown.csv")
    assert len(breakdown) == 8 * 2 * 3
    assert {row["table"] for row in breakdown} == {"category", "difficulty"}


def test_results_do_not_depend_on_times_or_on_when_runs_came(directory):
    write_report(directory, with_figures=False)
    before = {name: (directory / name).read_bytes() for name in ("results.csv", "timings.csv")}
    for path in directory.glob("*/seed*/timings.json"):
        path.write_text(json.dumps({"wall_seconds": 999.0, "starts": 4}))
    write_report(directory, with_figures=False)
    assert (directory / "results.csv").read_bytes() == before["results.csv"]
    assert (directory / "timings.csv").read_bytes() != before["timings.csv"]
    assert {row["starts"] for row in read(directory / "timings.csv")} == {"4", ""}
    assert not list(directory.glob("*.partial"))


def test_a_changed_result_changes_the_file(directory):
    write_report(directory, with_figures=False)
    before = (directory / "results.csv").read_bytes()
    path = next(directory.glob("moeut*/seed0/result.json"))
    path.write_text(path.read_text().replace('"exact_match": 0.9,', '"exact_match": 0.91,', 1))
    write_report(directory, with_figures=False)
    assert (directory / "results.csv").read_bytes() != before


def test_summaries(directory):
    write_report(directory, with_figures=False)
    text = (directory / "summary.md").read_text()
    assert text.startswith("# demo\n")
    assert "Without a usable result: 2 of 10 runs" in text
    assert "loss is nan" in text
    latex = (directory / "summary.tex").read_text()
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 5
    data = json.loads((directory / "summary.json").read_text())
    moeut = data["settings"][1]
    assert moeut["runs"] == {"done": 3, "running": 0, "failed": 1, "missing": 1}
    scores = moeut["scores"]["gen"]["exact_match"]
    assert scores["n"] == 3
    assert scores["mean"] == pytest.approx(0.8)
    assert scores["std"] == pytest.approx(0.1)
    assert scores["seeds"] == {"0": 0.9, "3": 0.7, "4": 0.8}
    assert moeut["test"]["against"] == "transformer"
    assert moeut["test"]["p"] == pytest.approx(moeut["test"]["p_holm"])
    assert [problem["seed"] for problem in data["problems"]] == [1, 2]


def test_nan_scores_reach_the_files_without_breaking_them(make_sweep):
    def spoil(variant, seed, data):
        if seed == 1:
            data["scores"][1]["metrics"]["exact_match"] = float("nan")

    directory = make_sweep(a=[0.5, 0.6, 0.7], result=spoil)
    write_report(directory, with_figures=False)
    values = [row["value"] for row in read(directory / "results.csv") if row["split"] == "gen"]
    assert "nan" in values
    data = json.loads((directory / "summary.json").read_text(), parse_constant=pytest.fail)
    assert data["settings"][0]["scores"]["gen"]["exact_match"]["n"] == 2
    assert "not a number" in (directory / "summary.md").read_text()


def test_categories_that_mean_something_in_markdown_and_latex(make_sweep):
    names = ["[np]", "*", "two\nlines", "a\rb", "[vp]"]

    def rename(variant, seed, data):
        cell = {"exact_match": 0.5, "rows": 20}
        data["scores"][1]["by_category"] = dict.fromkeys(names, cell)

    directory = make_sweep(a=[0.5], result=rename)
    write_report(directory, with_figures=False)
    lines = (directory / "summary.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("## gen: by category") + 4
    shown = [line.split("|")[1].strip() for line in lines[start : start + len(names)]]
    assert shown == ["*", "[np]", "[vp]", "a\\rb", "two\\nlines"]
    assert lines[start + len(names)] == ""
    latex = (directory / "summary.tex").read_text(encoding="utf-8")
    assert "{}[np] & 20" in latex
    assert "{}* & 20" in latex
    assert "two\\textbackslash{}nlines & 20" in latex
    rows = [row["row"] for row in read(directory / "breakdown.csv") if row["table"] == "category"]
    assert set(names) < set(rows)
