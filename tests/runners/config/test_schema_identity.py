"""The hash covers what changes the result, and nothing else."""

import dataclasses

import pytest

from runners.config.run_file import read_run

RUN = "task: {name: toy}\nmodel: {architecture: moeut}\n"


@pytest.fixture
def base(toy, write):
    return write(RUN)


def digest(path, *overrides, data="d"):
    return read_run(path, list(overrides)).hash(data)


@pytest.mark.parametrize(
    "override",
    [
        "task.size=4",
        "task.noise=0.5",
        "model.d_model=64",
        "model.architecture=sigma_moe",
        "model.depth.repeats=3",
        "model.attention=dense",
        "model.position.fraction=1",
        "model.form=decoder_lm",
        "train.steps=999",
        "train.num_threads=2",
        "train.device=cpu",
        "train.deterministic=false",
        "evaluate.repeats=[2]",
        "evaluate.rows_per_category=10",
        "select=best:dev",
    ],
)
def test_what_changes_the_result_changes_the_hash(base, override):
    assert digest(base, override) != digest(base)


@pytest.mark.parametrize(
    "override",
    [
        "seed=7",
        "train.log_interval=1",
        "train.checkpoint_interval=9",
        "train.parallel=fsdp",
        "train.tensorboard=true",
    ],
)
def test_what_does_not_change_the_result_does_not(base, override):
    assert digest(base, override) == digest(base)


def test_other_data_is_another_run(base):
    assert digest(base, data="e") != digest(base)


@pytest.mark.parametrize(
    "override",
    [
        "model.dropout=0",
        "model.depth={group: 2, repeats: 2, order: cycle, prelude: 0}",
        "model.attention.head_size=32",  # d_model / num_heads
        "model.attention.dropout=0.0",
        "model.final_norm=true",
        "model.position=rotary",
        "model.position={kind: rotary, fraction: 0.5}",
        "model.feed_forward={kind: sigma_moe, top_k: 4}",
        "model.match_parameters=null",
        "model.encoder_depth={group: 2}",
        "model.form=encoder_decoder",
    ],
)
def test_what_is_left_out_and_what_is_spelled_out_are_one_run(base, override):
    assert digest(base, override) == digest(base)


def test_the_name_of_an_architecture_is_none_of_its_options(base):
    spelled = "model={architecture: universal, depth: {group: 4, repeats: 1}}"
    assert digest(base, spelled) == digest(base, "model={architecture: transformer}")


def test_defaults_and_order_do_not_matter(base, write):
    other = write(
        "model: {feed_forward.top_k: 4, architecture: moeut}\ntask: {size: 3, name: toy}\n",
        "b.yaml",
    )
    assert digest(other) == digest(base)
    assert digest(base, "train.learning_rate=1e-3") == digest(base)


def test_it_is_short_and_stable(base):
    value = digest(base)
    assert len(value) == 8
    assert int(value, 16) >= 0
    config = read_run(base)
    assert dataclasses.replace(config, seed=3).hash("d") == value
    assert set(config.identity("d")) == {
        "task",
        "model",
        "train",
        "evaluate",
        "select",
        "data_hash",
    }
