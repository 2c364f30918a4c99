"""A sweep's file: W&B's form, overrides, and what is refused before anything runs."""

import pytest
from toy_sweep import SWEEP, message, plan

from runners.config.grid import expand
from runners.config.schema import ConfigError
from runners.config.sweep_file import read_sweep


def test_files_written_for_wandb(toy, write):
    extra = "program: main.py\ncommand: [python]\nmethod: grid\nmetric: {name: loss}\n"
    path = write(extra + SWEEP)
    sweep = read_sweep(path)
    assert len(sweep.notices) == 1
    assert sweep.notices[0].startswith(f"{path}:1: program, command, method, metric")
    assert len(expand(sweep, data_hash=lambda task: "")) == 18
    assert "method='bayes': unknown key" in message(path, "method=bayes")
    bayes = write(extra.replace("grid", "bayes") + SWEEP)
    assert f"{bayes}:3: method='bayes': expected grid" in message(bayes)


def test_keys_of_wandb_that_would_change_the_runs_are_refused(toy, write):
    for extra in ("early_terminate: {type: hyperband, min_iter: 3}\n", "run_cap: 5\n"):
        path = write(extra + SWEEP)
        assert f"{path}:1: {extra[:7]}" in message(path)
        assert "not supported" in message(path)


def test_a_number_counts_seeds_up_to_a_thousand_and_a_list_may_be_longer(toy, write):
    path = write(SWEEP)
    assert len(read_sweep(path, ["seeds=1000"]).config.seed_list) == 1000
    many = str(list(range(1001)))
    assert len(read_sweep(path, [f"seeds={many}"]).config.seed_list) == 1001
    assert {run.seed for run in plan(path, f"seeds=[{2**64 - 1}]")} == {2**64 - 1}


def test_overrides_address_base_and_top(toy, write):
    path = write(SWEEP)
    assert {run.config.train.steps for run in plan(path, "train.steps=5")} == {5}
    assert {run.config.train.steps for run in plan(path, "base.train.steps=5")} == {5}
    assert plan(path, "name=other")[0].directory.parts[1] == "other"
    assert len(plan(path, "seeds=1")) == 6
    assert len(plan(path, "parameters.model.depth.group.values=[2]")) == 9
    wide = plan(path, "variants.wide.model.d_model=96")
    assert {run.config.model.blueprint.d_model for run in wide} == {32, 96}
    assert read_sweep(path, ["baseline=wide"]).baseline == "wide"
    assert read_sweep(path, ["headline.split=gen"]).config.headline == {"split": "gen"}


def test_an_override_beats_variant_and_grid(toy, write):
    path = write(SWEEP)
    assert {run.config.model.blueprint.d_model for run in plan(path, "model.d_model=16")} == {16}
    sweep = read_sweep(path, ["model.depth.group=6"])
    assert "the grid over it is left out" in sweep.notices[0]
    runs = expand(sweep, data_hash=lambda task: "")
    assert len(runs) == 9
    assert {run.config.model.blueprint.depth.group for run in runs} == {6}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.stepz=3", "train.stepz=3: unknown key"),
        ("trian.steps=3", "trian.steps=3: unknown key"),
        ("sedes=3", "sedes=3: unknown key; expected one of name, base, variants"),
        ("train.steps=0", "command line: train.steps=0: must be at least 1"),
        ("seeds=0", "command line: seeds=0: must be at least 1"),
        ("seeds=20240101", "give a list of them, as [20240101] for this one"),
        ("seeds=1001", "seeds=1001: is how many seeds (0, 1, …); above 1,000 give a list"),
        ("seeds=[-1]", "seeds=[-1]: a seed must be at least 0"),
        ("seeds=[18446744073709551616]", "a seed must be at least 0 and below 2^64"),
        ("seeds=two", "command line: seeds='two': expected"),
        ("seeds=[1, 1]", "command line: seeds=[1, 1]: one is given twice"),
        ("seed=3", "command line: seed=3: a sweep takes seeds="),
        ("name=a/b", "command line: name='a/b': expected letters, digits"),
        ("ours=[wied]", "expected among the variants transformer, universal, wide"),
        ("baseline=wied", "expected one of the variants transformer, universal, wide; did you"),
        ("variants.wied.train.steps=2", "command line: variants.wied"),
        (
            "variants.wide.trian.steps=2",
            "command line: variants.wide.trian={'steps': 2}: unknown key",
        ),
        ("parameters.train.steps=2", "expected parameters.<key>.values="),
        ("parameters.trian.steps.values=[2]", "parameters.trian.steps"),
        ("headline.spilt=gen", "headline.spilt='gen': unknown key"),
        ("headline.metric=exact", "headline.metric='exact': expected one of exact_match"),
    ],
)
def test_bad_overrides(toy, write, override, expected):
    text = message(write(SWEEP), override)
    assert text.startswith("command line: ")
    assert expected in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("name: demo\n", "nmae: demo\n"), ":1: nmae='demo': unknown key; a sweep takes name"),
        (
            ("name: demo\n", "train: {}\n"),
            ":1: train={}: unknown key; a sweep (train belongs under",
        ),
        (("model.architecture: universal", "modle.d_model: 3"), ":8: variants.universal.modle"),
        (
            ("model.architecture: universal", "modle.d_model: 3"),
            "did you mean 'variants.universal.model'",
        ),
        (
            ("model.architecture: universal", "train.stps: 3"),
            ":8: variants.universal.train.stps=3: unknown",
        ),
        (("model.architecture: universal", "seed: 3"), "a sweep takes seeds instead"),
        (("model.architecture: universal", "model.sise: 3"), ":8: model.sise=3: unknown"),
        (("{model.architecture: universal}", "{}"), "universal (model.depth.group=2"),
        (("{model.architecture: universal}", "3"), ":8: variants.universal=3: expected a mapping"),
        (("  universal:", "  tr/x:"), ":8: variants.tr/x: expected a name"),
        (("  universal:", "  transformer:"), ":8: variants.transformer: key given twice"),
        (("values: [2, 4]", "values: [2, 2]"), "values=[2, 2]: one is given twice"),
        (("values: [2, 4]", "values: []"), "expected a list with at least one value"),
        (("values: [2, 4]", "valeus: [2, 4]"), "expected {value: x} or {values: [x, y]}"),
        (("values: [2, 4]", "values: 2"), "values=2: expected a list"),
        (("values: [2, 4]", "min: 2, max: 4"), "min=2: unknown key; a grid takes value, values"),
        (("values: [2, 4]", "values: [2, 0]"), "model.depth.group=0: must be"),
        (("values: [2, 4]", "values: [2, x]"), "model.depth.group='x': expected a whole number"),
        (("model.depth.group:", "model.depth.gruop:"), "model.depth.gruop=2: unknown"),
        (("model.depth.group:", "modle.depth.group:"), "parameters.modle.depth.group"),
        (("base:\n", "case:\n"), "did you mean 'base'"),
        (("steps: 10", "steps: 10, steps: 11"), ":5: base.train.steps: key given twice"),
    ],
)
def test_bad_sweeps(toy, write, change, expected):
    assert change[0] in SWEEP
    path = write(SWEEP.replace(*change, 1))
    text = message(path)
    assert text.startswith(f"{path}:")
    assert expected in text


def test_the_headline_is_a_split_of_the_task(toy, write):
    sweep = read_sweep(write(SWEEP + "headline:\n  split: gne\n"))
    with pytest.raises(ConfigError, match=r":\d+: headline.split='gne': .*; did you mean 'gen'\?"):
        sweep.check_headline(["test", "gen"], "sequence_to_sequence")
    read_sweep(write(SWEEP)).check_headline(["test"], "sequence_to_sequence")


def test_the_headline_is_a_metric_of_the_kind_of_task(toy, write):
    sweep = read_sweep(write(SWEEP + "headline:\n  metric: accuracy\n"))
    sweep.check_headline(["test"], "classification")
    with pytest.raises(ConfigError, match=r"headline.metric='accuracy': expected one of exact_m"):
        sweep.check_headline(["test"], "sequence_to_sequence")


def test_base_may_be_another_file(toy, write):
    write("task: {name: toy}\nmodel: {architecture: transformer}\ntrain: {steps: 3}\n", "run.yaml")
    path = write("base: run.yaml\nvariants: {a: {}, b: {train.steps: 4}}\n", "s.yaml")
    assert [run.config.train.steps for run in plan(path)] == [3, 4]
    path = write("base: {base: s.yaml, train.steps: 7}\n", "t.yaml")
    assert [run.config.train.steps for run in plan(path)] == [7]
    assert "no such file; did you mean 'run.yaml'" in message(write("base: rnu.yaml\n", "u.yaml"))
