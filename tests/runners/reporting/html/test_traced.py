"""Every number on the page stands in the report's files, or follows from what stands there."""

import csv
import functools
import json
import re
import statistics

import pytest
import yaml
from page_reader import page_data, page_tables

from runners.reporting.html import contents
from runners.reporting.page import write_report
from runners.reporting.results import load
from runners.reporting.statistics import compare_family, summarize

pytest.importorskip("vl_convert")

METRIC, OWN_DEPTH = "exact_match", "4"


def deepen(variant, seed, data):
    """Give scores at other depths, and more than one category."""
    own = data["scores"][1]
    own["by_category"]["pp_recursion"] = {METRIC: 0.25 + seed / 100, "rows": 60}
    for repeats in (2, 8):
        value = own["metrics"][METRIC] * 0.9 + repeats / 1000
        data["scores"].append(
            own
            | {"repeats": repeats, "is_default_depth": False}
            | {"metrics": {METRIC: value, "token_accuracy": 0.5}}
            | {
                "by_difficulty": {
                    "2": {METRIC: value, "rows": 60},
                    "10": {METRIC: 0.125 + seed / 64, "rows": 40},
                }
            }
        )


@pytest.fixture
def directory(make_sweep, furnish):
    made = make_sweep(
        transformer=[0.81, 0.80, 0.82, 0.79, 0.83],
        moeut=[0.9, "loss is nan", 0.95, 0.93, 0.94],
        result=deepen,
    )
    row = {"split": "gen", "source": "x", "target": "a b", "finished": True, "category": "pp"}
    for path in made.glob("*/seed0"):
        line = json.dumps(row | {"prediction": f"a {path.parent.name}", "correct": False})
        (path / "predictions.jsonl").write_text(line + "\n")
    furnish(made)
    write_report(made, with_figures=False)
    return made


@functools.lru_cache(maxsize=8)
def _rows(path, changed):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of(path, **wanted):
    """Return the rows of a file with these values; it is read again where it has changed."""
    rows = _rows(path, path.stat().st_mtime_ns)
    return [row for row in rows if wanted.items() <= row.items()]


def values(directory, source, **wanted):
    return [float(row["value"]) for row in rows_of(directory / source, **wanted)]


def change(path, old, new):
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))


# --- figures ----------------------------------------------------------------------------


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
        wanted |= {"variant": series, "repeats": OWN_DEPTH}
    else:
        wanted |= {"repeats": series.removesuffix(" repeats")}
    if chart["source"] == "breakdown.csv":
        wanted["row"] = x if isinstance(x, str) else f"{x:g}"
    return set(values(directory, chart["source"], **wanted))


def untraced_points(directory):
    """Return what the page's figures show that the files they name do not hold."""
    points = [
        (chart, chart["series"][series], seed, x, value)
        for chart in page_data(directory)["charts"]
        for series, seed, x, value in chart["rows"]
    ]
    return [
        (chart["name"], *point, value)
        for chart, *point, value in points
        if values_of(directory, chart, *point) != {value}
    ]


def test_every_number_of_a_figure_stands_in_the_file_that_it_names(directory):
    sections = {chart["section"] for chart in page_data(directory)["charts"]}
    assert sections == {"scores", "groups", "depth", "learning"}
    assert untraced_points(directory) == []
    # The test can fail: one number changed in the file is found.
    change(directory / "results.csv", "0.95", "0.96")
    assert {entry[-1] for entry in untraced_points(directory)} == {0.95}


def untraced_findings(directory):
    """Return the numbers of analyses that the tables of the runs do not hold, and all counted."""
    wrong, count = [], 0
    for found in page_data(directory)["analyses"]:
        names = [found["x"], *([found["y"]] if found["y"] else []), *found["measures"]]
        for model, group, seed, *cells in found["rows"]:
            (path,) = directory.glob(f"{found['models'][model]}-*/seed{seed}/{found['source']}")
            words = re.findall(r"(\w+) (\S+)", found["groups"][group])
            shown = ["" if cell is None else str(cell) for cell in cells]
            lines = [[row[name] for name in names] for row in rows_of(path, **dict(words))]
            wrong += [(found["name"], shown)] if shown not in lines else []
            count += 1
    return wrong, count


def test_every_number_of_an_analysis_stands_in_the_table_of_its_run(directory):
    wrong, count = untraced_findings(directory)
    # Curves of nine seeds, 6 and 3 rows; maps of the first seed of two models, 12 cells.
    assert (wrong, count) == ([], 9 * 6 + 9 * 3 + 2 * 12)
    (path,) = directory.glob("moeut-*/seed3/analysis/gen/lens.csv")
    accuracy = rows_of(path)[0]["accuracy"]
    change(path, f",{accuracy},", ",0.7,")
    assert untraced_findings(directory)[0] == [("lens-gen", ["0", accuracy, ""])]


def test_examples_are_lines_of_predictions(directory):
    shown = page_data(directory)["examples"]
    assert len(shown) == 2
    for row in shown:
        (path,) = directory.glob(f"{row['model']}-*/seed{row['seed']}/predictions.jsonl")
        line = json.loads(path.read_text())
        assert {key: row[key] for key in line if key != "finished"} == {
            key: value for key, value in line.items() if key != "finished"
        }


# --- tables -----------------------------------------------------------------------------

VARIANTS = ("transformer", "moeut")


def mean_std(found):
    if not found:
        return "–"
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.3f}{spread}"


def expected_cell(directory, title, row, column):
    """Return what a cell of a table should show, from the files; None where it names its row."""
    split, _, by = title.partition(": ")
    if title == "Every split and metric":
        wanted = {"split": row["split"], "metric": row["metric"], "is_default_depth": "true"}
        if column == "rows":
            return rows_of(directory / "results.csv", **wanted)[0]["rows"]
        found = values(directory, "results.csv", variant=column, **wanted)
        return mean_std(found) if column in VARIANTS else None
    if by == "by depth at evaluation":
        star = "*" if row["repeats"] == OWN_DEPTH else ""
        wanted = {"split": split, "metric": METRIC, "repeats": row["repeats"]}
        found = values(directory, "results.csv", variant=column, **wanted)
        return mean_std(found) + star if column in VARIANTS else None
    kind = {"by category": "category", "by recursion depth": "difficulty"}.get(by)
    key = next(iter(row.values()))
    wanted = {"split": split, "metric": METRIC, "row": key}
    if kind:
        wanted |= {"table": kind, "repeats": OWN_DEPTH}
        if column == "rows":
            return rows_of(directory / "breakdown.csv", **wanted)[0]["rows"]
        found = values(directory, "breakdown.csv", variant=column, **wanted)
        return mean_std(found) if column in VARIANTS else None
    variant, _, rest = by.partition(", ")
    assert rest == "by recursion depth and repeats", title
    repeats = column.rstrip("*")
    wanted |= {"table": "difficulty", "repeats": repeats, "variant": variant}
    return mean_std(values(directory, "breakdown.csv", **wanted)) if repeats.isdigit() else None


OTHERS = {
    "demo: gen exact_match",
    "Without a usable result: 1 of 10 runs",
    "Where the configs differ",
    "Machine, versions and code",
}


def wrong_cells(directory):
    """Return the cells of tables of scores that do not follow from the files."""
    tables = page_tables(directory)
    assert len(tables.keys() - OTHERS) == 7
    assert tables.keys() > OTHERS
    wrong = []
    for title in tables.keys() - OTHERS:
        for row in tables[title]:
            for column, shown in row.items():
                expected = expected_cell(directory, title, row, column)
                if expected not in (None, shown):
                    wrong.append((title, column, shown, expected))
    return wrong


SPLITS, DEPTHS = "Every split and metric", "gen: by depth at evaluation"
CURVES = {f"gen: {variant}, by recursion depth and repeats" for variant in VARIANTS}


@pytest.mark.parametrize(
    ("file", "old", "new", "titles"),
    [
        ("results.csv", ",0.95,", ",0.99,", {SPLITS, DEPTHS}),
        ("breakdown.csv", ",0.28,", ",0.82,", {"gen: by category"}),
        ("breakdown.csv", ",0.171875,", ",0.2,", CURVES),
    ],
)
def test_every_number_of_a_table_follows_from_the_files(directory, file, old, new, titles):
    assert wrong_cells(directory) == []
    # The test can fail: one number changed in the file is found.
    change(directory / file, old, new)
    assert {title for title, *_ in wrong_cells(directory)} == titles


def headline_values(directory):
    wanted = {"split": "gen", "metric": METRIC, "is_default_depth": "true"}
    return {
        variant: values(directory, "results.csv", variant=variant, **wanted) for variant in VARIANTS
    }


def test_every_number_of_the_comparison_follows_from_the_rows(directory):
    found = headline_values(directory)
    test = compare_family({"moeut": (found["moeut"], found["transformer"])})["moeut"]
    for row in page_tables(directory)["demo: gen exact_match"]:
        model = row["model"]
        own = rows_of(directory / "results.csv", variant=model)[0]
        times = rows_of(directory / "timings.csv", variant=model, status="done")
        seconds = round(statistics.fmean(float(each["wall_seconds"]) for each in times))
        low, high = summarize(found[model]).interval
        assert row == {
            "model": model,
            "parameters": f"{int(own['model_parameters']):,}",
            "MACs/token": f"{int(own['macs_per_token']):,}",
            "tokens seen": f"{int(own['tokens_seen']):,}",
            "wall time": f"{seconds // 60} min {seconds % 60:02d} s",
            "n": row["n"],
            "test exact_match": "1.000 ± 0.000",
            "gen exact_match": mean_std(found[model]),
            "95 % CI": f"[{low:.3f}, {high:.3f}]",
            "every seed": " ".join(f"{value:.3f}" for value in found[model]),
            "p against transformer": (
                "baseline" if model == "transformer" else f"{test.adjusted:.3f}"
            ),
        }
        assert row["n"].split()[0] == str(len(found[model]))


def test_headline_claims_what_the_test_shows(directory):
    headline = contents.headline(load(directory))
    found = headline_values(directory)
    means = {variant: statistics.fmean(each) for variant, each in found.items()}
    test = compare_family({"moeut": (found["moeut"], found["transformer"])})["moeut"]
    assert headline.claims == [
        f"moeut ({means['moeut']:.3f}) is better than transformer by "
        f"{means['moeut'] - means['transformer']:.3f} (p = {test.adjusted:.3f}, Holm-corrected)."
    ]
    assert test.adjusted == pytest.approx(2 / 126)  # exact: all of four above all of five
    assert "1 runs are missing; means are over the others." in headline.no_claims
    assert any(line.startswith("Not matched: MACs per token") for line in headline.budget)


def test_configs_environment_and_problems_are_those_of_the_runs(directory):
    tables = page_tables(directory)
    (row,) = tables["Where the configs differ"]
    for variant in VARIANTS:
        path = next(directory.glob(f"{variant}-*/seed0/config.yaml"))
        assert row[variant] == str(yaml.safe_load(path.read_text())["model"]["d_model"])
    shown = {each["what"]: each["value"] for each in tables["Machine, versions and code"]}
    assert shown == {"cores": "2", "packages.torch": "2.11"}
    (problem,) = tables["Without a usable result: 1 of 10 runs"]
    assert (problem["model"], problem["seed"]) == ("moeut", "1")
    assert problem["what happened"] == "after step 7: loss is nan"
