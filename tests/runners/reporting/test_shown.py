"""Of many models figures show the best, say so, and leave tables as they are."""

import copy
import dataclasses
import json

from runners import report
from runners.reporting import shown
from runners.reporting.figures import all_figures
from runners.reporting.html.charts import all_charts
from runners.reporting.html.document import to_html
from runners.reporting.results import load
from runners.reporting.shown import best, curve_models, grid_note, note, panel_models


def deepen(variant, seed, data):
    if variant == "a":
        more = copy.deepcopy(data["scores"][1])
        data["scores"].append(more | {"repeats": 2, "is_default_depth": False})


def labels(results):
    return [setting.label for setting in results.settings]


def test_the_best_are_kept_in_the_order_of_the_sweep(make_sweep):
    results = load(make_sweep(low=[0.1, 0.2], none=[None], top=[0.9, 0.7], middle=[0.5], tie=[0.5]))
    assert labels(best(results, 2)) == ["top", "middle"]
    assert labels(best(results, 4)) == ["low", "top", "middle", "tie"]
    assert best(results, 5) is results
    assert note(results, best(results, 2)) == (
        "The 2 of 5 models with the best gen exact_match; tables have all."
    )
    assert note(results, results) == ""


def test_the_best_loss_is_the_lowest(make_sweep):
    def lose(variant, seed, data):
        data["scores"][1]["metrics"] = {
            "bits_per_byte": data["scores"][1]["metrics"]["exact_match"]
        }

    headline = {"split": "gen", "metric": "bits_per_byte"}
    results = load(make_sweep(a=[2.5], b=[1.5], c=[0.5], result=lose, headline=headline))
    assert labels(best(results, 2)) == ["b", "c"]


def test_figures_and_the_page_show_the_best_and_say_so(make_sweep, monkeypatch):
    monkeypatch.setattr(shown, "MOST_MODELS", 2)
    monkeypatch.setattr(shown, "MOST_PANELS", 2)  # of two splits, so of one model
    results = load(make_sweep(a=[0.4, 0.6], b=[0.9], c=[0.7], result=deepen))
    said = "The 2 of 3 models with the best gen exact_match; tables have all."
    drawn = all_figures(results)
    for panel in [*drawn["difficulty"].panels, *drawn["learning"].panels]:
        assert set(panel.curves) == {"b", "c"}
    assert drawn["difficulty"].caption == drawn["learning"].caption == said
    # Only "a" was scored over depths, so that no better model takes its place.
    assert [panel.title for panel in drawn["difficulty_by_depth"].panels] == ["gen: a"]
    assert drawn["difficulty_by_depth"].caption == ""
    for chart in all_charts(results):
        if chart.section != "depth":
            assert {chart.series[row[0]] for row in chart.rows} == {"b", "c"}
            assert chart.note.startswith(said)
    assert labels(panel_models(results)) == ["b"]
    every = dataclasses.replace(results, models_shown=3)
    assert curve_models(every) is panel_models(every) is every


def test_the_page_has_examples_and_whole_configs_of_the_best_alone(make_sweep, monkeypatch):
    monkeypatch.setattr(shown, "MOST_MODELS", 1)
    directory = make_sweep(low=[0.1], top=[0.9])
    row = {"split": "gen", "category": "x", "correct": True, "source": "s", "target": "t"}
    for path in directory.glob("*/seed0"):
        name = path.parent.name.split("-")[0]
        line = json.dumps(row | {"prediction": f"said by {name}"})
        (path / "predictions.jsonl").write_text(line + "\n")
        (path / "config.yaml").write_text(f"width: {name} wide\n")
    page = to_html(load(directory))
    assert "said by top" in page
    assert "said by low" not in page
    assert ">low wide</td>" in page  # in the table of what differs
    assert "width: top wide" in page
    assert "width: low wide" not in page
    assert page.count("The 1 of 2 models with the best gen exact_match; tables have all.") >= 2


def test_curves_over_a_grid_are_whole_or_left_out(make_sweep, monkeypatch):
    directory = make_sweep(a=[0.1], bb=[0.9], ccc=[0.3], dddd=[0.4])
    plan = json.loads((directory / "sweep.json").read_text())
    for run, (variant, rate) in zip(
        plan["runs"], [("one", 1), ("one", 2), ("other", 1), ("other", 2)], strict=True
    ):
        run |= {"variant": variant, "parameters": {"rate": rate}}
    (directory / "sweep.json").write_text(json.dumps(plan))
    results = load(directory)
    assert grid_note(results) == ""
    monkeypatch.setattr(shown, "MOST_MODELS", 1)
    (panel,) = all_figures(results)["grid"].panels
    assert panel.curves == {"one": {1.0: [0.1], 2.0: [0.9]}}
    assert all_figures(results)["grid"].caption == (
        "Curves on which is one of: "
        "The 1 of 4 models with the best gen exact_match; tables have all."
    )
    (chart,) = (chart for chart in all_charts(results) if "grid" in chart.name)
    assert (chart.series, chart.note) == (["one"], all_figures(results)["grid"].caption)


def test_the_command_line_says_how_many(make_sweep, monkeypatch, capsys):
    directory = make_sweep(a=[0.4, 0.6], b=[0.9], c=[0.7])
    counts = []
    monkeypatch.setattr(
        report, "write_files", lambda results, **_: counts.append(results.models_shown) or ""
    )
    report.main([str(directory), "--models", "7"])
    report.main([str(directory)])
    assert counts == [7, None]
    assert report.main([str(directory), "--models", "0"]) == 2
    assert "--models=0: must be at least 1" in capsys.readouterr().err
