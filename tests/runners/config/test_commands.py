"""Commands that are kept make the same plan, and each run alone, to the hash."""

import json

import pytest
from toy_sweep import SWEEP, plan

from runners import sweep as command_line
from runners.config.commands import run_command, single_command, sweep_command, with_earlier
from runners.config.grid import expand, read_sweep, write_plan

OVERRIDES = ["train.steps=7", "seeds=[3, 4]"]


def test_each_run_alone_is_the_run_of_the_sweep(toy, write):
    file = str(write(SWEEP + "exclude: [{variant: wide, seed: 3}]\n"))
    runs = plan(file, *OVERRIDES)
    assert len(runs) == 10
    for run in runs:
        command = run_command(
            sweep_command(file, OVERRIDES, "wide"), run.variant, run.parameters, run.seed
        )
        module, *arguments = command
        options = command_line._parse(arguments)
        assert (module, str(options.runs_dir)) == ("runners.sweep", "again")
        found = plan(options.config, *options.overrides)
        (alone,) = [each for each in found if each.variant == options.only]
        assert (alone.hash, alone.seed, alone.config) == (run.hash, run.seed, run.config)


def test_values_of_the_grid_stay_what_they_are(toy, write):
    grid = "  model.position: {values: [learned, none]}\n  train.learning_rate: {values: [1e-7]}\n"
    file = write(SWEEP.replace("  train: {parameters: {learning_rate: {value: 1e-3}}}\n", grid))
    for run in plan(file):
        command = run_command(
            sweep_command(str(file), [], None), run.variant, run.parameters, run.seed
        )
        overrides = command_line._parse(command[1:]).overrides
        assert run.config in [each.config for each in plan(file, *overrides)]


def test_commands_of_one_plan_are_kept_together(toy, write, tmp_path):
    sweep = read_sweep(write(SWEEP))
    runs = expand(sweep, root=tmp_path, data_hash=lambda task: "")

    def kept(*arguments):
        path = write_plan(sweep, runs, sweep_command(*arguments))
        return json.loads(path.read_text())["commands"]

    first = ["runners.sweep", "a.yaml", "x=1", "--only", "wide"]
    second = ["runners.sweep", "a.yaml", "x=1", "--only", "universal"]
    assert kept("a.yaml", ["x=1"], "wide") == [first]
    assert kept("a.yaml", ["x=1"], "universal") == [first, second]
    assert kept("a.yaml", ["x=1"], "wide") == [first, second]
    assert kept("a.yaml", ["x=1"], None) == [first[:3]]
    assert kept("a.yaml", ["x=1"], "wide") == [first[:3]]
    assert kept("a.yaml", ["x=2"], "wide") == [["runners.sweep", "a.yaml", "x=2", "--only", "wide"]]


@pytest.mark.parametrize("text", ["", "[]", '{"runs": []}'])
def test_a_plan_without_commands_has_none(text, tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    assert with_earlier(path, ["runners.sweep", "a"]) == [["runners.sweep", "a"]]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/x/runners/train.py", "a.yaml", "train.steps=2"], ["a.yaml", "train.steps=2"]),
        (["/x/runners/run.py", "runs/demo/a-1/seed0"], ["runs/demo/a-1/seed0/config.yaml"]),
        (None, ["runs/demo/a-1/seed0/config.yaml"]),
    ],
)
def test_a_run_outside_of_a_sweep(argv, expected):
    assert single_command(argv, "runs/demo/a-1/seed0") == ["runners.train", *expected]
