"""The report of language models: less is better, and nothing speaks of accuracy."""

import json
import math
import os
import time

import pytest

from runners.reporting import breakdown, comparison, figures, results
from runners.reporting.page import write_report
from runners.reporting.results import load
from runners.reporting.run_result import Score, TaskSummary, to_plain
from tasks.base.lease import Lease
from tasks.base.metrics import TextLoss, measure

GOOD = [1.20, 1.21, 1.22, 1.23, 1.24]
MIDDLE = [1.215, 1.225, 1.235, 1.245, 1.255]
BAD = [1.40, 1.41, 1.42, 1.43, 1.44]


def score(split, bits):
    metrics = measure("language_modelling", TextLoss(bits * math.log(2) * 4, 100, 400))
    return Score(
        split=split,
        repeats=8,
        metrics=metrics,
        rows=50,
        rows_available=50,
        by_difficulty={
            str(end): {name: value * (1 + 1 / end) for name, value in metrics.items()} | {"rows": 9}
            for end in (1, 2, 4, 1024)
        },
    )


def log_rows(bits):
    """Rows of a run that is scored at steps 4, 6 and 8 and logged at every third and the last."""
    rows = [{"step": s, "loss": 9 / s, "tokens_seen": 100 * s} for s in (3, 6, 8)]
    rows += [
        {"step": s, "split": "validation", "metrics": score("validation", bits + 1 / s).metrics}
        for s in (4, 6, 8)
    ]
    return sorted(rows, key=lambda row: row["step"])


@pytest.fixture
def make_language_sweep(make_sweep):
    """Return a function that lays out a finished sweep of language models."""

    def make(name="lm", **variants):
        values = {}

        def language(variant, seed, data):
            bits = variants[variant][seed]
            values[variant, seed] = bits
            task = TaskSummary(
                name="language",
                kind="language_modelling",
                difficulty_name="position",
                headline_split="test",
                in_distribution_split="validation",
            )
            scores = [score("validation", bits + 0.01), score("test", bits)]
            data |= {"task": to_plain(task), "notes": [], "scores": to_plain(scores)}

        directory = make_sweep(name, result=language, **variants)
        for path in directory.glob("*/seed*/metrics.jsonl"):
            variant, seed = path.parent.parent.name.rpartition("-")[0], int(path.parent.name[4:])
            rows = log_rows(values[variant, seed])
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return directory

    return make


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def bold_models(table):
    return {table.rows[row][0] for row, _ in table.bold}


def test_the_lowest_is_the_best(make_language_sweep):
    found = load(make_language_sweep(transformer=BAD, moeut=GOOD, universal=MIDDLE))
    table = comparison.main_table(found)
    assert table.title == "lm: test bits_per_byte"
    assert column(table, "test bits_per_byte ↓") == [
        "1.4200 ± 0.0158",
        "1.2200 ± 0.0158",
        "1.2350 ± 0.0158",
    ]
    assert column(table, "validation bits_per_byte ↓")[1] == "1.2300 ± 0.0158"
    assert column(table, "test perplexity ↓")[1] == "29.47 ± 1.29"
    assert column(table, "every seed")[1] == "1.2000 1.2100 1.2200 1.2300 1.2400"
    assert column(table, "95 % CI")[1].startswith("[1.20")
    assert column(table, "p against transformer") == ["baseline", "0.016", "0.016"]
    # moeut is the best and universal cannot be told from it; transformer, the highest, can.
    assert bold_models(table) == {"moeut", "universal"}
    assert {table.columns[c] for _, c in table.bold} == {"test bits_per_byte ↓"}
    assert "bits_per_byte: lower is better." in table.notes


def test_the_other_direction_would_choose_the_other_models(make_language_sweep, monkeypatch):
    found = load(make_language_sweep(transformer=BAD, moeut=GOOD, universal=MIDDLE))
    monkeypatch.setattr(comparison, "is_lower_better", lambda metric: False)
    assert bold_models(comparison.main_table(found)) == {"transformer"}


def test_differences_say_which_way_they_go(make_language_sweep):
    directory = make_language_sweep(transformer=MIDDLE, moeut=GOOD, universal=BAD)
    write_report(directory, with_figures=False)
    settings = json.loads((directory / "summary.json").read_text())["settings"]
    assert settings[0]["headline"] == {
        "split": "test",
        "metric": "bits_per_byte",
        "is_lower_better": True,
    }
    near, far = settings[1]["test"], settings[2]["test"]
    assert near["difference"] < 0
    assert (near["is_different"], near["is_better"]) == (False, None)
    assert far["difference"] > 0
    assert far["is_better"] is False
    swapped = make_language_sweep("swapped", transformer=BAD, moeut=GOOD)
    write_report(swapped, with_figures=False)
    settings = json.loads((swapped / "summary.json").read_text())["settings"]
    assert settings[1]["test"]["is_better"] is True


def test_nothing_speaks_of_accuracy(make_language_sweep):
    directory = make_language_sweep(transformer=BAD, moeut=GOOD)
    write_report(directory, with_figures=False)
    for name in ("summary.md", "summary.tex", "results.csv", "breakdown.csv"):
        text = (directory / name).read_text()
        for word in ("accuracy", "exact_match", "chance", "ceiling", "majority", "None", "nan"):
            assert word not in text, (name, word)
    assert r"bits\_per\_byte $\downarrow$" in (directory / "summary.tex").read_text()
    assert "| perplexity ↓" in (directory / "summary.md").read_text()


def test_tables_by_position(make_language_sweep):
    tables = breakdown.breakdown_tables(load(make_language_sweep(a=[1.2], b=[1.4])))
    assert [table.title for table in tables] == ["validation: by position", "test: by position"]
    assert tables[1].rows[0] == ["1", "9", "2.4000", "2.8000"]
    assert column(tables[1], "position") == ["1", "2", "4", "1024"]


def test_in_distribution_is_no_column_of_its_own_where_it_is_the_headline(make_language_sweep):
    directory = make_language_sweep(a=[1.2], b=[1.4])
    for path in directory.glob("*/seed*/result.json"):
        data = json.loads(path.read_text())
        data["task"]["headline_split"] = "validation"
        path.write_text(json.dumps(data))
    columns = comparison.main_table(load(directory)).columns
    assert columns.count("validation bits_per_byte ↓") == 1
    assert "in distribution" not in " ".join(columns)
    for path in directory.glob("*/seed*/result.json"):
        path.write_text(path.read_text().replace('"in_distribution_split": "validation"', '"x": 1'))
    assert "in distribution" not in " ".join(comparison.main_table(load(directory)).columns)


def test_learning_curves_run_over_tokens(make_language_sweep):
    loss, validation = figures.learning_panels(load(make_language_sweep(a=[1.2, 1.3], b=[1.4])))
    assert (loss.title, loss.x, loss.y) == ("train", "tokens seen", "loss")
    assert loss.curves["b"] == {300.0: [3.0], 600.0: [1.5], 800.0: [1.125]}
    assert (validation.title, validation.x) == ("validation", "tokens seen")
    assert (validation.y, validation.accuracy) == ("bits_per_byte", False)
    # Step 4 lies between two logged ones.
    assert list(validation.curves["a"]) == [400.0, 600.0, 800.0]
    assert validation.curves["a"][800.0] == pytest.approx([1.325, 1.425])


def test_a_score_after_the_last_logged_step_is_placed_too(make_language_sweep):
    directory = make_language_sweep(a=[1.2])
    (path,) = directory.glob("*/seed0/metrics.jsonl")
    lines = [line for line in path.read_text().splitlines() if '"step": 8, "loss"' not in line]
    path.write_text("\n".join(lines) + "\n")
    _, validation = figures.learning_panels(load(directory))
    assert list(validation.curves["a"]) == [400.0, 600.0, 800.0]


def test_figures_of_language_models_have_no_scale_of_accuracies(make_language_sweep, tmp_path):
    found = load(make_language_sweep(a=[1.2, 1.3], b=[1.4, 1.5]))
    figure = figures.draw(figures.learning_panels(found))
    _, axes = figure.axes
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    # Everything above 1 would be cut off an axis made for accuracies.
    assert 1.0 < low < 1.3
    assert 1.7 < high < 2.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tokens seen", "bits per byte")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert [len(axes.collections) for axes in figure.axes] == [2, 2]  # a band for each variant
    figure.canvas.draw()
    labels = [label.get_text() for label in axes.get_yticklabels(which="both")]
    assert any(labels), "an axis without numbers"
    assert not any("10^" in label for label in labels)
    assert "600" in [label.get_text() for label in axes.get_xticklabels()]
    panels = figures.difficulty_panels(found)
    assert [(panel.x, panel.accuracy, panel.wide) for panel in panels] == [
        ("position", False, True)
    ] * 2
    paths = figures.draw_all(found, tmp_path / "figures")
    assert {path.stem for path in paths} == {"difficulty", "learning"}


# --- while it runs ------------------------------------------------------------------------


@pytest.fixture
def running(make_language_sweep):
    """A sweep of which no run has ended, and one is being made by another process."""
    directory = make_language_sweep(a=[1.2, 1.3], b=[1.4])
    for path in directory.glob("*/seed*/result.json"):
        path.unlink()
    (path,) = directory.glob("a-*/seed0")
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            with Lease(path):
                os.write(write, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.read(read, 1)
    yield directory, process
    os.kill(process, 9)
    os.waitpid(process, 0)


def test_a_run_at_work_is_running(running):
    directory, process = running
    (path,) = directory.glob("a-*/seed0")
    (path / "checkpoints").mkdir()
    (path.parent / "seed1" / "checkpoints").mkdir()
    found = load(directory)
    assert [run.status for run in found.runs] == ["running", "missing", "missing"]
    rows = breakdown.problems_table(found).rows
    assert rows[0][:3] == ["a", "0", "running"]
    assert rows[0][3].startswith(f"process {process} on ")
    assert rows[0][3].endswith(", at step 8")
    assert rows[1][2:] == ["missing", "interrupted"]
    write_report(directory, with_figures=False)
    data = json.loads((directory / "summary.json").read_text())
    assert data["settings"][0]["runs"] == {"done": 0, "running": 1, "failed": 0, "missing": 1}


def test_its_curve_is_drawn_before_any_run_ends(running):
    found = load(running[0])
    assert comparison.main_table(found).title == "lm: headline bits_per_byte"
    _, validation = figures.learning_panels(found)
    assert validation.y == "bits_per_byte"
    assert validation.curves["a"][800.0] == pytest.approx([1.325, 1.425])


def test_reading_a_report_does_not_disturb_a_run_that_begins(make_language_sweep):
    directory = make_language_sweep(a=[1.2])
    (path,) = directory.glob("a-*/seed0")
    (path / "result.json").unlink()
    with Lease(path):
        pass
    assert load(directory).runs[0].status == "missing"  # held no longer
    with Lease(path):
        assert load(directory).runs[0].status == "running"
    (lease,) = (path / ".lease").iterdir()
    foreign = json.loads(lease.read_text()) | {"pid": 7, "host": "elsewhere", "is_released": False}
    lease.write_text(json.dumps(foreign))
    assert load(directory).runs[0].message == "process 7 on elsewhere, at step 8"
    assert results.holder(directory) is None
