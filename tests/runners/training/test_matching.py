"""A run is sized to the budgets of its ``match`` section."""

import pytest

from runners.config.run_file import from_yaml, read_run, to_yaml
from runners.config.schema import ConfigError
from runners.training.cost import describe_model
from runners.training.experiment import build
from runners.training.lengths import tokens_per_step


@pytest.fixture
def read(tmp_path, run_text):
    def make(*overrides, **options):
        file = tmp_path / "run.yaml"
        file.write_text(run_text(**options))
        return read_run(file, overrides)

    return make


def flops_per_step(built):
    tokens = tokens_per_step(built.config.train, built.objective)
    return describe_model(built).training_flops_per_token * tokens


def test_steps_follow_from_the_operations_of_a_training(read):
    steps = {}
    for repeats in (1, 2, 4):
        depth = f"model.depth={{group: 1, repeats: {repeats}}}"
        built = build(read("match.training_flops=1e9", depth, architecture="universal"))
        steps[repeats] = built.config.train.steps
        assert built.config.train.steps == round(1e9 / flops_per_step(built))
    assert steps[1] > steps[2] > steps[4] > 10
    batch = build(read("match.training_flops=1e9", "train.batch_size=4")).config.train.steps
    half = build(read("match.training_flops=1e9", "train.batch_size=8")).config.train.steps
    assert batch == pytest.approx(2 * half, abs=1)


def test_the_run_is_the_same_whatever_steps_it_had(read):
    """Steps that follow are no part of its identity, so the filled-in config is the same run."""
    config = read("match.training_flops=1e9", "train.steps=5")
    filled = build(config).config
    assert filled.train.steps > 5
    assert filled.hash("data") == config.hash("data")
    again = from_yaml(to_yaml(filled))
    assert build(again).config == filled
    assert config.hash("data") != read("match.training_flops=2e9", "train.steps=5").hash("data")
    assert read("train.steps=4").hash("data") != read("train.steps=5").hash("data")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["match.training_flops=0"], "match.training_flops=0.0: must be above 0"),
        (["match.training_flops=10"], "match.training_flops=10.0: one step takes "),
        (["match.training_flop=10"], "did you mean 'match.training_flops'"),
        (
            ["match.training_flops=1e8", "train.steps=1000", "train.warmup_steps=900"],
            "train.warmup_steps=900: must be below steps=",
        ),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(overrides, said, read):
    with pytest.raises(ConfigError) as caught:
        build(read(*overrides))
    assert said in str(caught.value)


def test_what_is_not_met_stands_in_the_plan_and_in_the_result(read, tmp_path, capsys):
    """A dense width is sized to parameters, and then nothing is free for the operations."""
    from runners import sweep
    from runners.process.run_directory import RunDirectory
    from runners.reporting.results import load

    budgets = ("match.parameters=9000", "match.flops_per_token=2000", "train.steps=5")
    (said,) = build(read(*budgets, "model.feed_forward=dense")).unmet
    assert said.startswith("match.flops_per_token 2,000 is not met: ")
    assert said.endswith("%)")
    text = (tmp_path / "run.yaml").read_text().replace("    hidden_size: 16\n", "")
    text = text.replace("{hidden_size: 16}", "{}")
    base = "".join(f"  {line}\n" for line in text.splitlines())
    file = tmp_path / "some.yaml"
    file.write_text(f"name: some\nbase:\n{base}variants: {{mine: {{}}}}\n")
    command = [str(file), *budgets, f"--runs-dir={tmp_path / 'runs'}"]
    assert sweep.main([*command, "--dry-run"]) == 0
    assert f"mine: {said}" in " ".join(capsys.readouterr().out.split())
    assert sweep.main([*command, "--no-figures"]) == 0
    assert f"mine: {said}" in capsys.readouterr().out
    results = load(tmp_path / "runs" / "some")
    assert RunDirectory(results.runs[0].directory).read_config().match.flops_per_token == 2000
