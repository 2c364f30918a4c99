"""What a step holds between its passes, against what autograd saves and what is allocated."""

import gc

import pytest
import torch

from runners.config.run_file import read_run
from runners.training import activations
from runners.training.activations import Held, activation_bytes
from runners.training.criterion import Where
from runners.training.experiment import build, build_model
from runners.training.lengths import train_columns
from runners.training.loop import build_criterion

MODELS = {
    "dense": ("transformer",),
    "shared": ("universal", "model.depth.repeats=3"),
    "experts": ("moeut",),
    "gates": ("ndr", "model.depth={group: 1, repeats: 3}", "model.position=none"),
    "halting": ("universal", "model.depth.repeats=3", "model.halting=act"),
    "chosen tokens": ("universal", "model.depth.repeats=3", "model.halting=token_choice"),
    "every exit": ("universal", "model.depth.repeats=3", "train.objective.kind=every"),
}


@pytest.fixture
def built(tmp_path, run_text):
    def make(*overrides, architecture="universal", **options):
        file = tmp_path / "run.yaml"
        file.write_text(run_text(architecture=architecture, **options))
        return build(read_run(file, ["train.accumulate=1", *overrides]))

    return make


def first_batch(one):
    columns = train_columns(one.objective)
    order = columns.order(batch_size=one.config.train.batch_size, tokens_per_batch=None, seed=0)
    return columns.batch(order.rows(0), device=torch.device("cpu"))


def saved_bytes(one):
    """Return the bytes of the storages that autograd saves in the first step's forward pass."""
    torch.manual_seed(0)
    model, batch = build_model(one.model_config, torch.device("cpu")).train(), first_batch(one)
    others = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*model.parameters(), *model.buffers(), *batch.tensors.values())
    }
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in others:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        criterion = build_criterion(one.config.train, one.model_config, seed=0)
        loss = criterion.loss(one.objective, model, batch, Where(0, batch.rows, True))
    assert loss.cross_entropy_sum.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_autograd_saves(name, form, built):
    """And the losses; records of a pass, which are dropped, may have been saved for as well."""
    architecture, *overrides = MODELS[name]
    one = built(*overrides, form=form, architecture=architecture)
    found, saved = activation_bytes(one), saved_bytes(one)
    assert abs(found - saved) <= max(64, 0.01 * saved)


@pytest.mark.parametrize("name", ["universal", "moeut"])
def test_it_is_what_a_profiler_sees_allocated_and_not_freed(name, built):
    one = built(form="decoder_lm", architecture=name)
    torch.manual_seed(0)
    model, batch = build_model(one.model_config, torch.device("cpu")).train(), first_batch(one)
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = one.objective.loss(model, batch)
    allocated = sum(event.self_cpu_memory_usage for event in profile.events())
    assert loss.cross_entropy_sum.requires_grad
    assert activation_bytes(one) == pytest.approx(allocated, rel=0.02)


def test_a_storage_counts_once_while_it_is_held():
    given = torch.ones(8)
    with Held([given]) as held:
        made = given * 2  # 32 bytes
        views = made[:4], made.view(2, 4), given[2:]
        assert held.bytes == 32
        other = made.double()  # 64 bytes
        assert held.bytes == 96
        del made, views
        assert held.bytes == 64
        del other
    assert held.bytes == 0


def test_a_part_of_a_step_and_what_is_recomputed_hold_less(built):
    depth = "model.depth.repeats=6"
    whole = activation_bytes(built(depth, form="decoder_lm"))
    half = activation_bytes(built(depth, "train.accumulate=2", form="decoder_lm"))
    assert half == pytest.approx(whole / 2, rel=0.1)
    recomputed = built(depth, "train.activation_checkpointing=true", form="decoder_lm")
    assert activation_bytes(recomputed) < 0.5 * whole
    last = built(depth, "train.backprop_repeats=2", "model.state.injection=add", form="decoder_lm")
    assert activation_bytes(last) < 0.5 * whole


def test_a_batch_too_large_to_be_measured_follows_from_some_rows(built, monkeypatch):
    one = built(form="decoder_lm")
    whole = activation_bytes(one)
    rows = len(first_batch(one).rows)
    per_row = activations.macs_per_token(one.model_config, one.objective) * sum(
        activations.mean_lengths(one.objective)
    )
    monkeypatch.setattr(activations, "MOST_MACS", (rows - 1) * per_row)
    assert activation_bytes(one) == pytest.approx(whole, rel=0.1)
    monkeypatch.setattr(activations, "MOST_MACS", 2 * per_row)
    assert activation_bytes(one) is None


def test_measuring_draws_nothing_from_the_run(built):
    one = built(form="decoder_lm", architecture="moeut")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert activation_bytes(one) == activation_bytes(one)
    assert torch.equal(torch.random.get_rng_state(), before)
