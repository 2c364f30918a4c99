"""Sweeps multiply out to their runs, once each."""

import json
import sys

import pytest
from toy_sweep import SWEEP, message, plan

from runners.config.grid import expand, plan_record, read_sweep, write_plan
from runners.config.schema import ConfigError


def test_every_combination_once(toy, write):
    runs = plan(write(SWEEP))
    keys = [(run.variant, run.parameters["model.depth.group"], run.seed) for run in runs]
    assert len(keys) == len(set(keys)) == 3 * 2 * 3
    assert len({run.directory for run in runs}) == len(runs)
    assert keys[0] == ("transformer", 2, 0)
    first = runs[0]
    assert first.parameters == {"model.depth.group": 2, "train.learning_rate": 1e-3}
    assert first.config.train.learning_rate == 1e-3
    assert str(first.directory) == f"runs/demo/transformer-{first.hash}/seed0"
    wide = [run for run in runs if run.variant == "wide"]
    assert {run.config.model.blueprint.d_model for run in wide} == {64}
    assert [run.config.seed for run in runs] == [run.seed for run in runs]


def test_seeds_share_a_hash_and_grid_points_do_not(toy, write):
    runs = plan(write(SWEEP))
    assert len({run.hash for run in runs}) == 6


def test_a_sweep_can_be_small(toy, write):
    path = write("base: {task: {name: toy}, model: {architecture: moeut}}\n", "tiny.yaml")
    (run,) = plan(path)
    assert (run.variant, run.parameters, run.seed) == ("base", {}, 0)
    assert run.directory.parts[1] == "tiny"


def test_seed_lists_and_seeds_in_the_grid(toy, write):
    path = write(SWEEP)
    assert {run.seed for run in plan(path, "seeds=[5, 7]")} == {5, 7}
    grid = SWEEP.replace("seeds: 3\n", "  seed: {values: [4, 6]}\n")
    assert {run.seed for run in plan(write(grid))} == {4, 6}
    assert len({run.hash for run in plan(write(grid))}) == 6


def test_exclude(toy, write):
    path = write(SWEEP + "exclude:\n  - {variant: wide, model.depth.group: 4}\n")
    runs = plan(path)
    assert len(runs) == 15
    assert ("wide", 4) not in {(run.variant, run.parameters["model.depth.group"]) for run in runs}
    nested = write(SWEEP + "exclude:\n  - {variant: wide, model: {depth: {group: 4}}, seed: 0}\n")
    assert len(plan(nested)) == 17
    assert "matches no run" in message(write(SWEEP + "exclude: [{variant: wied}]\n"))
    assert "exclude[0].varaint" in message(write(SWEEP + "exclude: [{varaint: wide}]\n"))
    assert "exclude leaves no run" in message(
        write(SWEEP + "exclude: [{seed: 0}, {seed: 1}, {seed: 2}]\n")
    )


def test_data_is_hashed_once_per_task(toy, write):
    asked = []

    def data_hash(task):
        asked.append(task["size"])
        return str(task["size"])

    path = write(SWEEP.replace("model.depth.group:", "task.size:"))
    runs = expand(read_sweep(path), data_hash=data_hash)
    assert asked == [2, 4]
    assert len({run.hash for run in runs}) == 6
    assert len(expand(read_sweep(path))) == len(runs)


@pytest.mark.parametrize(("key", "limit"), [("train.weight_decay", 800), ("model.dropout", 7000)])
def test_a_thousand_points_take_few_calls(toy, write, key, limit):
    """Some 520 calls a point where models are the same, 4,800 where each is another: a second."""
    values = ", ".join(f"{n / 1000}" for n in range(500))
    text = "base: {task: {name: toy}, model: {architecture: moeut}}\n"
    text += "variants: {a: {}, b: {model.feed_forward.top_k: 2}}\n"
    path = write(text + f"parameters: {{{key}: {{values: [{values}]}}}}\n")
    plan(path, f"{key}=0")  # the first run imports the models
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        points = plan(path)
    finally:
        sys.setprofile(None)
    assert len(points) == 1000
    assert calls < 1000 * limit


def test_the_plan_on_disk(toy, write, tmp_path):
    sweep = read_sweep(write(SWEEP), ["headline={split: gen}"])
    runs = expand(sweep, root=tmp_path / "runs", data_hash=lambda task: "")
    path = write_plan(sweep, runs)
    assert path == tmp_path / "runs/demo/sweep.json"
    record = json.loads(path.read_text())
    assert record == json.loads(json.dumps(plan_record(sweep, runs)))
    assert record["baseline"] == "transformer"
    assert record["headline"] == {"split": "gen"}
    assert len(record["runs"]) == 18
    assert record["runs"][0]["directory"] == f"transformer-{runs[0].hash}/seed0"
    before = path.read_bytes()
    write_plan(sweep, runs)
    assert path.read_bytes() == before


def test_a_grid_reaches_nested_keys_and_kinds(toy, write):
    text = "base: {task: {name: toy}, model: {architecture: moeut, position: learned}}\n"
    text += "parameters:\n  model.depth.repeats: {values: [2, 4]}\n"
    text += "  model.attention: {values: [dense, {top_k: 1}]}\n"
    runs = plan(write(text), "model.position.max_length=64")
    models = [run.config.model.blueprint for run in runs]
    assert [(each.depth.repeats, each.attention.kind) for each in models] == [
        (2, "dense"),
        (2, "switch_head"),
        (4, "dense"),
        (4, "switch_head"),
    ]
    assert {each.position.max_length for each in models} == {64}
    assert len({run.hash for run in runs}) == 4
    assert runs[1].parameters["model.attention"] == {"top_k": 1}
    assert len(plan(write(text), "model.depth.repeats=3")) == 2


def test_two_places_of_the_same_rows_are_one_run_and_said_to_be(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    for name in ("a.tsv", "b.tsv", "c.tsv"):
        (tmp_path / name).write_text("x y\ty x\n" + "z\tz\n" * (name == "c.tsv"))
    grid = (
        "base: {{task: {{name: file, train: a.tsv}}, model: {{architecture: transformer}}}}\n"
        "parameters: {{task.train: {{values: [{}]}}}}\n"
    )
    assert len({run.hash for run in expand(read_sweep(write(grid.format("a.tsv, c.tsv"))))}) == 2
    with pytest.raises(ConfigError, match=r"b\.tsv.* and .*a\.tsv.* are the same run"):
        expand(read_sweep(write(grid.format("a.tsv, b.tsv"))))
