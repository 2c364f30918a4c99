"""Several sweeps on one page, where they measure the same."""

import csv

import pytest

from runners.compare import main
from runners.reporting.html import contents
from runners.reporting.results import load
from runners.reporting.together import together


def test_two_sweeps_on_one_page(make_sweep, tmp_path, capsys):
    values = [0.80, 0.81, 0.82, 0.83, 0.84]
    first = make_sweep("first", a=values)
    second = make_sweep("second", a=[value + 0.1 for value in values])
    assert main([str(first), str(second), "--no-figures"]) == 0
    output = tmp_path / "first+second"
    assert f"written to {output}" in capsys.readouterr().out
    with open(output / "results.csv", newline="") as file:
        rows = [
            r for r in csv.DictReader(file) if (r["split"], r["metric"]) == ("gen", "exact_match")
        ]
    assert [(row["variant"], float(row["value"])) for row in rows] == [
        *(("first: a", value) for value in values),
        *(("second: a", value + 0.1) for value in values),
    ]
    assert len({row["hash"] for row in rows}) == 2  # the same config in both
    found = contents.headline(together([load(first), load(second)], output))
    assert found.claims == [
        "second: a (0.920) is better than first: a by 0.100 (p = 0.008, Holm-corrected)."
    ]


def other_task(variant, seed, data):
    data["task"]["name"] = "scan"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"result": other_task}, "its task is scan, that of"),
        ({"headline": {"metric": "token_accuracy"}}, "its metric is token_accuracy, that of"),
        ({"headline": {"split": "test"}}, "its headline split is test, that of"),
    ],
)
def test_sweeps_that_measure_something_else_are_refused(
    make_sweep, tmp_path, capsys, options, expected
):
    first, second = make_sweep("first", a=[0.5]), make_sweep("second", a=[0.5], **options)
    assert main([str(first), str(second)]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "first+second").exists()


def test_other_data_of_the_same_task_are_refused(make_sweep, capsys):
    first, second = make_sweep("first", a=[0.5]), make_sweep("second", a=[0.5])
    for directory, length in ((first, 20), (second, 30)):
        path = next(directory.glob("a-*/seed0")) / "config.yaml"
        path.write_text(f"task: {{name: cogs, length: {length}}}\n")
    assert main([str(first), str(second)]) == 2
    assert "its data is" in capsys.readouterr().err


def test_one_sweep_or_none_done_is_bad_input(make_sweep, capsys):
    first = make_sweep("first", a=[None])
    assert main([str(first)]) == 2
    assert "expected at least two sweeps" in capsys.readouterr().err
    assert main([str(first), str(first)]) == 2
    assert "no run has a result yet" in capsys.readouterr().err
