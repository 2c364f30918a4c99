"""What a model costs: its size, and its work at the lengths that the task has."""

import pytest

from moeut import sizing
from runners.config.run_file import read_run
from runners.training import operations
from runners.training.cost import describe_model
from runners.training.experiment import build
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
