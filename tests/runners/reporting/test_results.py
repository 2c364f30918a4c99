"""A sweep's directory is read as planned: what is missing or failed is there too."""

import json
import math
import shutil
import sys

import pytest

from runners.config.yaml_nodes import ConfigError
from runners.reporting.comparison import main_table
from runners.reporting.results import load


def test_every_planned_run_is_there(make_sweep):
    results = load(make_sweep(a=[0.5, "loss is nan", None], b=[0.7, 0.8, 0.9]))
    assert [run.status for run in results.runs] == ["done", "failed", "missing", *["done"] * 3]
    assert results.runs[1].message == "after step 7: loss is nan"
    assert results.runs[2].message == "not started"
    assert results.settings[1].values("gen", "exact_match") == [0.7, 0.8, 0.9]
    assert results.baseline == "a"
    assert results.splits() == ["test", "gen"]
    assert results.metrics() == ["exact_match", "token_accuracy"]


def test_a_score_that_is_no_number_is_told(make_sweep):
    def spoil(variant, seed, data):
        if seed == 1:
            data["scores"][1]["metrics"]["exact_match"] = math.nan

    results = load(make_sweep(a=[0.5, 0.6], result=spoil))
    assert results.settings[0].values("gen", "exact_match") == [0.5]
    assert results.runs[1].message == "a score is not a number"


def test_runs_of_another_plan_are_left_out(make_sweep):
    directory = make_sweep(a=[0.5])
    (directory / "old-12345678/seed0").mkdir(parents=True)
    results = load(directory)
    assert results.unplanned == ["old-12345678/seed0"]
    assert len(results.runs) == 1


def test_without_a_plan_the_disk_decides(make_sweep):
    results = load(make_sweep(b=[0.5, "failed"], a=[0.1], plan=False))
    assert [(run.variant, run.seed, run.status) for run in results.runs] == [
        ("a", 0, "done"),
        ("b", 0, "done"),
        ("b", 1, "failed"),
    ]
    assert results.baseline == "a"


def test_bad_directories(tmp_path, make_sweep):
    directory = make_sweep(a=[0.5])
    with pytest.raises(ConfigError, match=r"no such directory; did you mean 'demo'\?"):
        load(tmp_path / "dmeo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no run"):
        load(tmp_path / "empty")
    next(directory.glob("*/seed0/result.json")).write_text('{"status": ')
    with pytest.raises(ConfigError, match=r"result.json: damaged: "):
        load(directory)


def test_a_torn_last_row_of_the_curve_is_left_out(make_sweep):
    directory = make_sweep(a=[0.5])
    path = next(directory.glob("*/seed0/metrics.jsonl"))
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in load(directory).runs[0].metrics_rows()] == [1, 2, 3, 1, 3]


def test_only_a_line_feed_ends_a_row_of_the_curve(make_sweep):
    directory = make_sweep(a=[0.5])
    path = next(directory.glob("*/seed0/metrics.jsonl"))
    rows = [{"step": 1, "split": "a\u2028b\x85", "metrics": {}}, {"step": 2, "loss": 1.0}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    assert load(directory).runs[0].metrics_rows() == rows


def test_labels_and_headlines(make_sweep):
    directory = make_sweep(a=[0.5], parameters={"model.num_layers": 8}, headline={"split": "test"})
    results = load(directory)
    (setting,) = results.settings
    assert setting.label == "a (num_layers=8)"
    assert results.headline_split(setting) == "test"
    assert results.headline_metric(setting) == "exact_match"
    plan = json.loads((directory / "sweep.json").read_text())
    plan["headline"] = {"metric": "token_accuracy"}
    (directory / "sweep.json").write_text(json.dumps(plan))
    results = load(directory)
    assert results.headline_split(setting) == "gen"
    assert results.headline_metric(setting) == "token_accuracy"


def add_settings(directory, variant, points):
    """Plan a variant at more grid points, with the runs of the first."""
    plan = json.loads((directory / "sweep.json").read_text())
    first = [run for run in plan["runs"] if run["variant"] == variant]
    for number, point in enumerate(points):
        for run in first:
            digest = f"ffff{number:04x}"
            folder = f"{variant}-{digest}/seed{run['seed']}"
            shutil.copytree(directory / run["directory"], directory / folder)
            more = {"parameters": point, "hash": digest, "directory": folder}
            plan["runs"].append(run | more)
    plan["runs"] = [run for run in plan["runs"] if run not in first]
    (directory / "sweep.json").write_text(json.dumps(plan))


def test_grid_values_are_given_as_they_are(make_sweep):
    directory = make_sweep(a=[0.5])
    rates = [0.00031622776601683794, 0.0003162278, 1e-5, 1.0, 1e6]
    add_settings(directory, "a", [{"train.learning_rate": rate} for rate in rates])
    results = load(directory)
    shown = [row["train.learning_rate"] for row in results.frame()][::4]
    assert shown == ["0.00031622776601683794", "0.0003162278", "1e-05", "1", "1e+06"]
    assert list(map(float, shown)) == rates
    assert len({setting.label for setting in results.settings}) == len(rates)
    assert results.settings[1].label == "a (learning_rate=0.0003162278)"


def test_labels_of_two_settings_differ(make_sweep):
    directory = make_sweep(a=[0.5])
    point = {"model.dropout": 0.1, "model.attention.dropout": 0.0}
    add_settings(directory, "a", [point, point, {**point, "model.dropout": 0.2}])
    assert [setting.label for setting in load(directory).settings] == [
        "a (model.dropout=0.1, attention.dropout=0) ffff0000",
        "a (model.dropout=0.1, attention.dropout=0) ffff0001",
        "a (model.dropout=0.2, attention.dropout=0)",
    ]
    shown = [row[:3] for row in main_table(load(directory)).rows]
    assert shown == [["a ffff0000", "0.1", "0"], ["a ffff0001", "0.1", "0"], ["a", "0.2", "0"]]


def test_tidy_rows(make_sweep):
    results = load(make_sweep(a=[0.5, None], parameters={"train.steps": [1, 2]}))
    rows = results.frame()
    assert len(rows) == 2 * 2 + 1
    assert rows[2] == {
        "sweep": "demo",
        "variant": "a",
        "train.steps": "[1, 2]",
        "seed": 0,
        "hash": "00000001",
        "status": "done",
        "select": "final",
        "step": 2000,
        "model_parameters": 1000,
        "macs_per_token": 800,
        "tokens_seen": 12345,
        "split": "gen",
        "repeats": "4",
        "is_default_depth": True,
        "metric": "exact_match",
        "value": 0.5,
        "rows": 100,
        "rows_available": 100,
    }
    assert rows[4] == dict.fromkeys(rows[0]) | {
        "sweep": "demo",
        "variant": "a",
        "train.steps": "[1, 2]",
        "seed": 1,
        "hash": "00000001",
        "status": "missing",
    }


def test_a_data_frame_needs_pandas(make_sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'moeut-suite\[frame\]'"):
        load(make_sweep(a=[0.5])).to_pandas()


def test_a_data_frame_has_the_rows(make_sweep):
    pandas = pytest.importorskip("pandas")
    results = load(make_sweep(a=[0.5, 0.7]))
    frame = results.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    means = frame[frame.split == "gen"].groupby("metric").value.mean()
    assert means["exact_match"] == pytest.approx(0.6)
