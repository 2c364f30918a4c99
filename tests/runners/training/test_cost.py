"""What a model costs: its size, and its work at the lengths that the task has."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moeut import sizing
from runners.config.run_file import read_run
from runners.training import operations
from runners.training.cost import describe_model
from runners.training.experiment import build, build_model
from runners.training.lengths import mean_lengths


def macs_per_token(built):
    return operations.macs_per_token(built.model_config, built.objective)


def macs_at(built, repeats, **options):
    return operations.macs_at(built.model_config, built.objective, repeats, **options)


@pytest.fixture
def built(tmp_path, run_text):
    def make(*overrides, **options):
        file = tmp_path / "run.yaml"
        file.write_text(run_text(**options))
        return build(read_run(file, overrides))

    return make


@pytest.mark.parametrize(
    ("form", "marks"),
    [("encoder_decoder", (2, 1)), ("encoder_classifier", (2,)), ("decoder_lm", (2,))],
)
def test_lengths_are_means_over_train(form, marks, built, tmp_path):
    """Source and target are equally long; the source stands between two marks, the target behind
    one, and both in one sequence behind two."""
    one = built(form=form)
    rows = (tmp_path / "train.tsv").read_text().splitlines()
    mean = sum(len(row.split("\t")[0].split()) for row in rows) / len(rows)
    letters = 2 * mean if form == "decoder_lm" else mean
    assert mean_lengths(one.objective) == tuple(round(letters + extra) for extra in marks)


def test_a_model_is_described_by_its_decoder(built):
    one = built("model.depth={group: 2, repeats: 3}", "model.encoder_depth.repeats=5",
                architecture="universal")  # fmt: skip
    summary = describe_model(one)
    assert summary.parameters == sizing.count_parameters(one.model_config)
    assert (summary.num_layers, summary.group_size, summary.d_model) == (6, 2, 16)
    assert summary.macs_per_token == macs_per_token(one)
    deeper = built("model.depth={group: 2, repeats: 3}", "model.encoder_depth.repeats=6",
                   architecture="universal")  # fmt: skip
    assert macs_per_token(deeper) > macs_per_token(one)
    assert describe_model(deeper).parameters == summary.parameters


@pytest.mark.parametrize("form", ["encoder_decoder", "decoder_lm"])
def test_a_part_of_the_repeats_costs_a_part(form, built):
    """And a state that is read out besides costs a coda and a head."""
    one = built("model.depth={prelude: 1, repeats: 6, coda: 1}", "model.halting=act",
                form=form, architecture="universal")  # fmt: skip
    names = list(one.model_config.stacks)
    whole = macs_at(one, dict.fromkeys(names, 6.0))
    assert whole == macs_at(one, {})
    assert whole == pytest.approx(macs_per_token(one), abs=4)  # each cost it is made of is rounded
    halves = [macs_at(one, {name: 3.0}) for name in names]
    assert all(half < whole for half in halves)
    least, middle = (macs_at(one, dict.fromkeys(names, taken)) for taken in (2.0, 4.0))
    assert middle == pytest.approx((least + whole) / 2, rel=1e-3)
    if form == "decoder_lm":
        config = one.model_config
        head = config.d_model * config.num_outputs
        per_layer = (whole - least) / 4  # one layer in the group
        read = macs_at(one, {}, readings=2.0) - whole
        # Halting decides at each repeat of the group, not in the coda.
        assert read == pytest.approx(2 * (head + per_layer - config.d_model), abs=2)


def test_tokens_that_have_halted_do_not_count(built):
    """What PyTorch counts of the products that run, and the logits and weighted sums of attention,
    which it does not see on a CPU, are the work at the mean of their repeats."""
    one = built("model.depth={prelude: 1, repeats: 6, coda: 1}", "model.halting=act",
                form="encoder_classifier", architecture="universal")  # fmt: skip
    torch.manual_seed(0)
    model = build_model(one.model_config, torch.device("cpu")).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "halting" in name:
                parameter.mul_(30.0)
    (length,) = mean_lengths(one.objective)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = model(torch.randint(3, 9, (1, length)))
    taken = output.decisions["encoder"]["halting.repeats"].float()
    assert taken.min() < taken.max()
    mean = float(taken.mean())
    attention = (2 + mean) * one.model_config.attention.attending_macs(length)
    counted = counter.get_total_flops() / 2 / length + attention
    assert macs_at(one, {"encoder": mean}) == pytest.approx(counted, rel=0.01)
    assert macs_per_token(one) > 1.1 * counted


def test_training_counts_the_repeats_that_gradients_flow_through(built):
    options = {"form": "decoder_lm", "architecture": "universal"}
    depth = "model.depth={prelude: 1, repeats: 6, coda: 1}"
    one = built(depth, "model.state.injection=add", "train.backprop_repeats=2", **options)
    model = build_model(one.model_config, torch.device("cpu")).double()
    (length,) = mean_lengths(one.objective)
    with FlopCounterMode(display=False) as counter:
        output = model(torch.randint(3, 9, (1, length)), trace=True, backprop_repeats=2)
        output.logits.sum().backward()
    ours = describe_model(one).training_flops_per_token
    assert ours == pytest.approx(counter.get_total_flops() / length, rel=0.02)
    assert ours < 0.7 * sizing.training_flops_per_token(macs_per_token(one))


def test_training_counts_the_mean_of_the_depths_that_are_drawn(built):
    depth = "model.depth={prelude: 1, repeats: 4, coda: 1}"
    drawn = "train.repeats={kind: uniform, low: 2, high: 8}"
    options = {"form": "decoder_lm", "architecture": "universal"}
    fixed, random = (
        built(depth, "train.repeats.number=5", **options),
        built(depth, drawn, "train.steps=4000", **options),
    )
    by_hand = describe_model(fixed).training_flops_per_token
    assert describe_model(random).training_flops_per_token == pytest.approx(by_hand, rel=0.03)
    assert by_hand == 6 * macs_at(fixed, {"decoder": 5.0})
