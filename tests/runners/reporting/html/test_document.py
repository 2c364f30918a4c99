"""The parts of the page, and that users' text stays text."""

import json
import sys

import pytest

from runners.reporting.html import analyses, contents, document
from runners.reporting.html.analyses import all_analyses
from runners.reporting.html.charts import all_charts
from runners.reporting.page import write_report
from runners.reporting.results import load

pytest.importorskip("vl_convert")


@pytest.fixture
def directory(make_sweep):
    return make_sweep(transformer=[0.81, 0.80], moeut=[0.9, 0.95])


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


def test_without_analyses_one_line_names_the_command(directory):
    write_report(directory, with_figures=False)
    page = (directory / "report.html").read_text(encoding="utf-8")
    folder = f"{directory.parent.name}/demo"
    assert f"No run has been analysed; <code>python -m runners.analyze {folder}</code>" in page


@pytest.mark.parametrize("damage", ["", "[]", '{"kind": "curves"}', None])
def test_damaged_analyses_are_passed_over(damage, directory, furnish):
    furnish(directory)
    whole = all_analyses(load(directory))
    assert [(found.name, found.left_out) for found in whole] == [
        ("halting-gen", 0),
        ("lens-gen", 0),
        ("use-gen", 0),
    ]
    path = next(directory.glob("moeut-*/seed1/analysis/gen/lens.json"))
    if damage is None:
        path.with_suffix(".csv").write_text("application\n")
    else:
        path.write_text(damage)
    assert len(all_analyses(load(directory))[1].rows) == len(whole[1].rows) * 3 / 4


def test_figures_of_analyses_share_the_numbers_that_a_page_holds(directory, furnish, monkeypatch):
    furnish(directory)
    # A run has 6 rows of 2 numbers in its curves, and a model 2 maps of 6 cells of 2 numbers.
    monkeypatch.setattr(analyses, "MOST_NUMBERS", 25 * 3)
    _, lens, use = all_analyses(load(directory))
    assert [row[1] for row in use.rows] == [0] * 12
    assert use.left_out == 2
    assert sorted({(row[0], row[2]) for row in lens.rows}) == [(0, 0), (1, 0)]
    assert lens.left_out == 2
    monkeypatch.setattr(analyses, "MOST_NUMBERS", 49 * 3)
    _, lens, use = all_analyses(load(directory))
    assert (len(use.rows), use.left_out, lens.left_out) == (24, 0, 0)


def test_configs_are_compared_key_by_key():
    table = contents.differences_table(
        {"a": "model: {d: 1, e: 2}\nseed: 0", "b": "model: {d: 3, e: 2}\nseed: 1"}
    )
    assert table.columns == ["key", "a", "b"]
    assert table.rows == [["model.d", "1", "3"]]
    assert contents.differences_table({"a": "x: 1", "b": "x: 1"}) is None
    values = {"a": "x: geometric", "b": 'x: "1"', "c": "x: 1", "d": "x: null", "e": 'x: "[a: "'}
    (row,) = contents.differences_table(values).rows
    assert row == ["x", "geometric", '"1"', "1", "null", '"[a: "']


def test_what_only_some_runs_say_is_counted(make_sweep):
    directory = make_sweep(a=[0.5, 0.6, 0.7])
    for seed, environment in enumerate(({"git": {"commit": "12"}, "cores": 2}, {"cores": 2}, None)):
        if environment is not None:
            path = next(directory.glob(f"a-*/seed{seed}")) / "env.json"
            path.write_text(json.dumps(environment))
    table = contents.environment_table(load(directory))
    assert table.rows == [["git.commit", "12 (1 of 2 runs)"], ["cores", "2"]]


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
