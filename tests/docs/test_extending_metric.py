"""The recipe of docs/extending.md for a metric, run to a scored result and a table."""

from __future__ import annotations

import json

import pytest

from runners import report, train
from runners.config.grid import read_sweep
from runners.config.yaml_nodes import ConfigError
from tasks.base.metrics import METRICS, Answers, Metric, Prediction, measure
from tasks.base.task import Example

RUN = """
task: {{name: file, train: {0}/train.tsv, test: {0}/test.tsv}}
model: {{architecture: transformer, d_model: 16}}
train: {{steps: 4, batch_size: 8, warmup_steps: 0}}
"""


# --- tasks/base/metrics.py: a function, and an entry of METRICS -----------------------------


def length_error(answers: Answers) -> float:
    """Return by how many tokens outputs miss the length of their targets, on average."""
    pairs = zip(answers.examples, answers.predictions, strict=True)
    errors = [abs(len(prediction.tokens) - len(row.target)) for row, prediction in pairs]
    return sum(errors) / len(errors)


ENTRY = Metric(
    kinds=("sequence_to_sequence",),
    compute=length_error,
    meaning="mean difference between the lengths of output and target, in tokens",
    lower_is_better=True,
    decimals=2,
)


# --- what it gets for that --------------------------------------------------------------


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(METRICS, "length_error", ENTRY)


def test_it_is_measured_with_the_others():
    rows = [Example(("x",), ("a", "b")), Example(("y",), ("a",))]
    predictions = [Prediction(("a", "b")), Prediction(("a", "b", "c", "d"))]
    metrics = measure("sequence_to_sequence", Answers(rows, predictions))
    assert metrics["length_error"] == 1.5
    assert metrics["exact_match"] == 0.5
    labels = Answers([Example(("x",), ("a",))], [Prediction(("a",))])
    assert "length_error" not in measure("classification", labels)


def test_a_sweep_may_name_it_as_its_headline(tmp_path):
    path = tmp_path / "sweep.yaml"
    text = "base: {task: {name: addition}}\nvariants: {a: {}}\nheadline: {metric: %s}\n"
    path.write_text(text % "length_error")
    assert read_sweep(path).config.headline == {"metric": "length_error"}
    path.write_text(text % "lenght_error")
    with pytest.raises(ConfigError, match="did you mean 'length_error'"):
        read_sweep(path)


def test_results_and_tables_have_it(tmp_path, capsys):
    for name in ("train", "test"):
        rows = (f"{'a ' * n}\t{'b ' * n}\n" for n in range(1, 9))
        (tmp_path / f"{name}.tsv").write_text("".join(rows))
    (tmp_path / "run.yaml").write_text(RUN.format(tmp_path))
    folder = tmp_path / "sweep" / "transformer-00000000" / "seed0"
    assert train.main([str(tmp_path / "run.yaml"), f"--run-directory={folder}"]) == 0
    (score,) = json.loads((folder / "result.json").read_text())["scores"]
    value = score["metrics"]["length_error"]
    capsys.readouterr()
    sweep = str(tmp_path / "sweep")
    assert report.main([sweep, "--metric", "length_error", "--no-figures"]) == 0
    table = capsys.readouterr().out
    assert "test length_error ↓" in table
    assert f"| {value:.2f} " in table
    assert "length_error: lower is better." in table
