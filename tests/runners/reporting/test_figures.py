"""Figures are drawn from the numbers on disk, byte for byte the same each time."""

import copy
import json
import sys

import pytest

from runners.reporting.figures import (
    FiguresUnavailable,
    depth_panels,
    difficulty_panels,
    draw_all,
    grid_panels,
    learning_panels,
    repeats_used_panels,
)
from runners.reporting.html.charts import all_charts
from runners.reporting.results import load


def deepen(variant, seed, data):
    more = copy.deepcopy(data["scores"][1])
    more |= {"repeats": 8, "is_default_depth": False}
    more["metrics"]["exact_match"] = 0.25
    data["scores"].append(more)


def test_every_figure_twice_the_same(make_sweep, tmp_path):
    results = load(make_sweep(a=[0.4, 0.6], b=[0.5, None], result=deepen))
    paths = draw_all(results, tmp_path / "one")
    assert [path.name for path in paths] == [
        f"{name}.{kind}"
        for name in ("difficulty", "depth", "difficulty_by_depth", "learning")
        for kind in ("png", "pdf", "svg")
    ]
    again = draw_all(results, tmp_path / "two")
    for first, second in zip(paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size > 2000


def test_what_the_panels_hold(make_sweep):
    results = load(make_sweep(a=[0.4, 0.6], b=[0.5], result=deepen))
    test, gen = difficulty_panels(results)
    assert (gen.title, gen.x, gen.y) == ("gen", "recursion depth", "exact_match")
    assert gen.curves["a"] == {2.0: [0.4, 0.6], 10.0: [0.2, 0.3]}
    assert test.curves["b"][2.0] == [1.0]
    (depth,) = depth_panels(results)
    assert depth.curves["a"] == {4.0: [0.4, 0.6], 8.0: [0.25, 0.25]}
    assert depth.marks == {"a": 4.0, "b": 4.0}
    loss, test = learning_panels(results)
    assert loss.curves["a"] == {1: [2.0, 2.0], 2: [1.0, 1.0], 3: [2 / 3, 2 / 3]}
    assert test.curves["b"] == {1: [1 / 3], 3: [1.0]}


def test_without_matplotlib_one_line_says_what_to_do(make_sweep, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FiguresUnavailable, match="pip install"):
        draw_all(load(make_sweep(a=[0.5])), tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_sweep_without_results_has_no_figures(make_sweep, tmp_path):
    assert draw_all(load(make_sweep(a=[None])), tmp_path / "figures") == []


def test_a_grid_of_numbers_is_a_curve_at_the_budget_that_all_share(make_sweep):
    def spend(variant, seed, data):
        data["model"]["training_flops_per_token"] = 600 if variant == "shallow" else 1200
        data["tokens_seen"] = 2000 if variant == "shallow" else 1000

    def results(loops, **options):
        directory = make_sweep(shallow=[0.4, 0.6], deeper=[0.5, 0.7], result=spend, **options)
        plan = json.loads((directory / "sweep.json").read_text())
        for run in plan["runs"]:
            run["parameters"] = {"model.depth.repeats": loops[run["variant"]], "seed": 1}
            run["variant"] = "one"
        (directory / "sweep.json").write_text(json.dumps(plan))
        return load(directory)

    numbers = results({"shallow": 1, "deeper": 4})
    (panel,) = grid_panels(numbers)
    assert (panel.title, panel.x) == ("gen, at 1.2e+06 training FLOPs", "model.depth.repeats")
    assert panel.curves == {"one (seed=1)": {1.0: [0.4, 0.6], 4.0: [0.5, 0.7]}}
    (chart,) = (chart for chart in all_charts(numbers) if "grid" in chart.name)
    assert (chart.title, chart.series) == (panel.title, [*panel.curves])
    assert chart.where == {"split": "gen"}
    assert chart.rows == [(0, 0, 1, 0.4), (0, 1, 1, 0.6), (0, 0, 4, 0.5), (0, 1, 4, 0.7)]
    assert grid_panels(results({"shallow": "a", "deeper": "b"}, name="words")) == []


def test_the_repeats_used_are_drawn_over_difficulty(make_sweep):
    def halt(variant, seed, data):
        if variant == "a":
            cells = {
                "2": {"repeats_used": 1.5, "rows": 4},
                "10": {"repeats_used": 3.0 + seed, "rows": 4},
            }
            data["scores"][1]["tables"] = {"difficulty, repeats used": cells}

    (panel,) = repeats_used_panels(load(make_sweep(a=[0.4, 0.6], b=[0.5], result=halt)))
    assert (panel.title, panel.x, panel.y) == ("gen", "recursion depth", "repeats used")
    assert panel.curves == {"a": {2.0: [1.5, 1.5], 10.0: [3.0, 4.0]}}
    assert repeats_used_panels(load(make_sweep("plain", b=[0.5]))) == []
