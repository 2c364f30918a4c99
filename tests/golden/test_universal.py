"""Encoders with coordinates and adaptive computation time, as Universal-Transformer-Pytorch's."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from moeut.interop import from_universal, mapping
from moeut.interop.universal import BabiTransformer, universal_maps, with_options

pytestmark = pytest.mark.golden

FOLDERS = ("universal",)
VALUE, GRADIENT = 1e-10, 1e-9


def imported(golden) -> BabiTransformer:
    return from_universal(golden.config, golden.part("param"))


def run(golden, model, **options):
    return model(golden.tensors["story"], golden.tensors["query"], **options)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def assert_gradients(golden, model, prefix: str) -> None:
    theirs = dict(golden.part(prefix))
    for name in golden.config["params_without_gradient"]:
        theirs.pop(name, None)
    expected = mapping.to_ours(universal_maps(model.config), theirs)
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= GRADIENT, name
    assert not expected


def test_states_logits_and_losses(golden) -> None:
    model, t = imported(golden).train(), golden.tensors
    read: list[torch.Tensor] = []
    model.encoder.layers[0].register_forward_pre_hook(lambda _, args: read.append(args[0]))
    output = run(golden, model, trace=True)
    states = output.repeats["encoder"]
    for name, wanted in golden.part("state").items():
        assert distance(states[int(name) - 1], wanted) <= VALUE, name
    for name, wanted in golden.part("layer_in").items():
        assert distance(read[int(name) - 1], wanted) <= VALUE, name
    assert distance(output.logits, t["logits"]) <= VALUE
    cross_entropy = F.cross_entropy(output.logits, t["answer"])
    assert distance(cross_entropy, t["cross_entropy"]) <= VALUE
    cross_entropy.backward(retain_graph=True)
    assert_gradients(golden, model, "grad")
    if not golden.config["act"]:
        assert not output.auxiliary_loss
        return
    assert not output.auxiliary_loss.requires_grad
    assert distance(cross_entropy + output.auxiliary_loss, t["loss"]) <= VALUE
    record = output.decisions["encoder"]
    assert distance(record["halting.repeats"], t["n_updates"]) <= VALUE
    assert distance(record["halting.remainder"], t["remainders"]) <= VALUE
    ponder = (record["halting.repeats"] + record["halting.remainder"]).mean()
    assert distance(ponder, t["ponder"]) <= VALUE


def test_a_ponder_cost_that_trains(golden) -> None:
    if not golden.config["act"]:
        assert not golden.part("grad_act")
        return
    model, t = imported(golden), golden.tensors
    halting = dataclasses.replace(model.config.halting, cost="ponder")
    model = with_options(model, halting=halting).train()
    output = run(golden, model)
    loss = F.cross_entropy(output.logits, t["answer"]) + output.auxiliary_loss
    assert distance(loss, t["loss_differentiable"]) <= VALUE
    loss.backward()
    assert_gradients(golden, model, "grad_act")


def test_what_is_encoded(golden) -> None:
    """In evaluation a pass ends where every position has halted, as the code's loop does."""
    model = imported(golden).eval()
    states: list[torch.Tensor] = []
    model.encoder.register_forward_hook(lambda _, args, out: states.append(out.states))
    assert distance(run(golden, model).logits, golden.tensors["logits"]) <= VALUE
    assert distance(states[0], golden.tensors["encoded"]) <= VALUE


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model = imported(golden)
    unused = golden.config["params_without_gradient"]
    theirs = {n: t for n, t in golden.part("param").items() if n not in unused}
    assert_imported_once(model, universal_maps(model.config), theirs)
    with pytest.raises(ValueError, match="embedding_size=3: only"):
        from_universal(golden.config | {"embedding_size": 3}, golden.part("param"))


def test_values_may_be_narrower_than_keys(golden) -> None:
    """Values of two channels a head are values of more whose others are zero."""
    narrow, wide = dict(golden.part("param")), dict(golden.part("param"))
    attention = "transformer_enc.enc.multi_head_attention"
    heads, size = golden.config["heads"], golden.config["value_depth"] // golden.config["heads"]
    for name, axis in (
        (f"{attention}.value_linear.weight", 0),
        (f"{attention}.output_linear.weight", 1),
    ):
        rows = wide[name].movedim(axis, 0).unflatten(0, (heads, size))
        kept = torch.arange(size) < 2
        narrow[name] = rows[:, :2].flatten(0, 1).movedim(0, axis).contiguous()
        wide[name] = (rows * kept[:, None]).flatten(0, 1).movedim(0, axis).contiguous()
    options = golden.config | {"value_depth": 2 * heads}
    model = from_universal(options, narrow)
    wanted = run(golden, from_universal(golden.config, wide)).logits
    assert distance(run(golden, model).logits, wanted) <= VALUE
    assert distance(wanted, golden.tensors["logits"]) > 1e-4


def test_misplaced_parts_are_seen(golden) -> None:
    model = imported(golden)
    feed_forward = model.config.feed_forward
    changes = [
        {"norm_kind": "layer"},
        {"feed_forward": dataclasses.replace(feed_forward, activate_output=False)},
        {"conditioning": dataclasses.replace(model.config.conditioning, positions=False)},
    ]
    if golden.config["act"]:
        halting = model.config.halting
        others: list[dict[str, object]] = [{"average": "tensor2tensor"}]
        if (golden.tensors["remainders"] == 0).any():  # of what has not halted at the end
            others.append({"halts_at_end": True})
        changes += [{"halting": dataclasses.replace(halting, **other)} for other in others]
    for change in changes:
        output = run(golden, with_options(model, **change))
        assert distance(output.logits, golden.tensors["logits"]) > 1e-4, change
