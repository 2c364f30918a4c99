"""Tables by kind of row, by difficulty and by depth."""

import copy

from runners.reporting.breakdown import breakdown_tables, depth_tables, splits_table
from runners.reporting.comparison import baseline_notes
from runners.reporting.figures import difficulty_panels
from runners.reporting.results import load


def test_tables_by_category_difficulty_and_of_the_task(make_sweep):
    def enrich(variant, seed, data):
        data["scores"][1]["by_category"]["pp"] = {"exact_match": 1.0, "rows": 60}
        data["scores"][1]["tables"] = {
            "lexical/structural": {
                "lexical": {"exact_match": 0.9, "rows": 90},
                "structural": {"exact_match": 0.1 * seed, "rows": 10},
            }
        }

    results = load(make_sweep(a=[0.4, 0.6], b=[0.5, 0.5], result=enrich))
    tables = {table.title: table for table in breakdown_tables(results)}
    assert list(tables) == [
        "test: by recursion depth",
        "gen: by category",
        "gen: by recursion depth",
        "gen: by lexical/structural",
    ]
    assert tables["gen: by category"].rows[0] == ["cp_recursion", "40", *["0.000 ± 0.000"] * 2]
    by_depth = tables["gen: by recursion depth"]
    assert by_depth.columns == ["recursion depth", "rows", "a", "b"]
    assert by_depth.rows == [
        ["2", "60", "0.500 ± 0.141", "0.500 ± 0.000"],
        ["10", "40", "0.250 ± 0.071", "0.250 ± 0.000"],
    ]
    assert tables["gen: by lexical/structural"].rows[1][2] == "0.050 ± 0.071"


def test_tables_by_depth(make_sweep):
    def deepen(variant, seed, data):
        if variant == "moeut":
            for repeats in (2, [8, 8], [4, 8]):
                more = copy.deepcopy(data["scores"][1])
                more |= {"repeats": repeats, "is_default_depth": False}
                more["metrics"]["exact_match"] = 0.25
                data["scores"].append(more)

    results = load(make_sweep(transformer=[0.4], moeut=[0.5], result=deepen))
    (table,) = depth_tables(results)
    assert table.title == "gen: by depth at evaluation"
    assert table.columns == ["repeats", "moeut"]
    assert table.rows == [["2", "0.250"], ["4", "0.500*"], ["4 + 8", "0.250"], ["8", "0.250"]]


def test_every_split_and_metric(make_sweep):
    def sample(variant, seed, data):
        data["scores"][1]["rows_available"] = 21000

    table = splits_table(load(make_sweep(a=[0.5], b=[0.7], result=sample)))
    assert table.rows == [
        ["test", "exact_match", "100", "1.000", "1.000"],
        ["test", "token_accuracy", "100", "1.000", "1.000"],
        ["gen", "exact_match", "100 of 21,000", "0.500", "0.700"],
        ["gen", "token_accuracy", "100 of 21,000", "0.750", "0.850"],
    ]


def test_tables_in_another_metric_than_the_headline_name_it(make_sweep):
    headline = {"split": "gen", "metric": "token_accuracy"}
    results = load(make_sweep(a=[0.4, 0.6], b=[0.5], headline=headline))
    tables = {table.title: table for table in breakdown_tables(results)}
    by_depth = tables["gen: by recursion depth"]
    assert by_depth.rows[0] == ["2", "60", "0.500 ± 0.141", "0.500"]
    assert by_depth.notes == ["Scores are exact_match."]
    assert [panel.y for panel in difficulty_panels(results)] == ["exact_match"] * 2
    notes = baseline_notes(results)
    assert notes[0] == "gen, exact_match: chance 0.000, majority 0.010, ceiling 0.922."
    own = load(make_sweep("own", a=[0.4], b=[0.5]))
    assert all(table.notes == [] for table in breakdown_tables(own))
