"""Analyses of finished runs from the command line."""

import csv
import json

import pytest

from runners import analyze


@pytest.fixture
def finished(make_run, train):
    def make(*overrides, **options):
        directory = make_run(
            "run", "train.steps=4", "evaluate.interval=null", *overrides, **options
        )
        assert train(directory) == "done"
        return directory

    return make


def test_a_run_gets_tables_figures_and_what_they_cannot_say(finished, capsys):
    directory = finished(form="encoder_classifier", architecture="moeut")
    before = json.loads((directory / "result.json").read_text())
    assert analyze.main([str(directory), "--rows", "8"]) == 0
    said = capsys.readouterr().out
    assert "halting: left out, no token halts" in said
    assert "values: left out, the task gives no intermediate values" in said
    folder = directory / "analysis" / "test"
    for name in ("lens", "states", "routing_use", "attention", "swap"):
        assert (folder / f"{name}.png").stat().st_size > 1000
        rows = list(csv.DictReader((folder / f"{name}.csv").open()))
        assert rows
    lens = list(csv.DictReader((folder / "lens.csv").open()))
    last = [row for row in lens if row["difficulty"] == "all"][-1]
    scored = next(score for score in before["scores"] if score["split"] == "test")
    assert float(last["accuracy"]) == pytest.approx(scored["metrics"]["accuracy"])
    assert "What it cannot say" in (folder / "analysis.md").read_text()


@pytest.mark.parametrize("form", ["encoder_decoder", "decoder_lm"])
def test_other_forms(form, finished):
    directory = finished(form=form, architecture="universal")
    arguments = [str(directory), "--probe", "lens", "--probe", "swap", "--repeats", "3"]
    assert analyze.main([*arguments, "--rows", "8"]) == 0
    rows = list(csv.DictReader((directory / "analysis" / "test" / "lens.csv").open()))
    assert {row["application"] for row in rows} == {"0", "1", "2", "3"}
    assert not (directory / "analysis" / "test" / "states.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--probe", "lense"], "--probe lense: expected one of lens, states"),
        (["--split", "tset"], "--split tset: expected one of train, dev, test; did you mean"),
        (["--rows", "0"], "--rows 0: must be at least 1"),
        (["--repeats", "4"], "its depth is fixed"),
    ],
)
def test_bad_input_ends_with_status_2(arguments, expected, finished, capsys):
    assert analyze.main([str(finished()), *arguments]) == 2
    assert expected in capsys.readouterr().err
