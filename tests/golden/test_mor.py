"""Mixture-of-Recursions, and recursion with shared keys, give the numbers of the published code."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.interop import mapping
from moeut.interop.mor import from_mor, mor_maps
from moeut.recurrence.controller import NoHalting
from moeut.recurrence.mixture import ExpertChoice, TokenChoice

pytestmark = pytest.mark.golden

FOLDERS = ("mor",)
RESTATED = "mor"
VALUE, GRADIENT = 1e-10, 1e-9


def imported(golden) -> Any:
    """Return the model; losses of its router are divided by the labels that the code counts."""
    model = from_mor(golden.config, golden.part("param"))
    halting, tokens = model.config.halting, golden.tensors["tokens"]
    scale = tokens.numel() / golden.config["num_items_in_batch"]
    changes = {"z_loss": halting.z_loss * scale} if not isinstance(halting, NoHalting) else {}
    if isinstance(halting, TokenChoice):
        changes["balancing_loss"] = halting.balancing_loss * scale
    config = dataclasses.replace(model.config, halting=dataclasses.replace(halting, **changes))
    return rebuilt(config, model.state_dict())


def rebuilt(config, state) -> Any:
    model = moeut.build(config).double()
    model.load_state_dict(state)
    return model


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def language_loss(golden, logits: torch.Tensor) -> torch.Tensor:
    tokens = golden.tensors["tokens"]
    targets = tokens[:, 1:].flatten()
    summed = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum")
    return summed / golden.config["num_items_in_batch"]


def sampling_apart(model) -> bool:
    """Whether the loss of another router has a backward pass of its own in the code."""
    halting = model.config.halting
    return isinstance(halting, ExpertChoice) and halting.sampling == "router"


def test_logits_losses_and_gradients(golden) -> None:
    model, t = imported(golden).train(), golden.tensors
    output = model(t["tokens"])
    assert distance(output.logits, t["logits"]) <= VALUE
    loss = language_loss(golden, output.logits)
    assert distance(loss, t["lm_loss"]) <= VALUE
    total, wanted = loss + output.auxiliary_loss, t["loss"].clone()
    if sampling_apart(model):
        wanted += model.config.halting.sampling_loss * t["sampling_loss"]
    assert distance(total, wanted) <= VALUE
    total.backward()

    theirs = dict(golden.part("grad"))
    for name in golden.config["params_without_gradient"]:
        zeros = torch.zeros_like(golden.part("param")[name])
        assert theirs.setdefault(name, zeros).abs().max() == 0.0, name
    if sampling_apart(model):
        weight = model.config.halting.sampling_loss
        apart = golden.part("grad_sampling")
        theirs |= {n: weight * g for n, g in apart.items() if "mlp_router" in n}
    for name, parameter in golden.part("param").items():
        if name.endswith("router_bias"):
            theirs[name] = torch.zeros_like(parameter)
    expected = mapping.to_ours(mor_maps(model.config, golden.config), theirs)
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert distance(found, expected.pop(name)) <= GRADIENT, name
    assert not expected


def test_evaluation(golden) -> None:
    """Without gradients too, where keys that nobody reads again are written over."""
    model, wanted = imported(golden).eval(), golden.tensors["eval.logits"]
    for with_gradient in (True, False):
        with torch.set_grad_enabled(with_gradient):
            assert distance(model(golden.tensors["tokens"]).logits, wanted) <= VALUE


def test_who_goes_how_deep(golden) -> None:
    model, t = imported(golden).train(), golden.tensors
    decisions = (model(t["tokens"]).decisions or {}).get("decoder", {})
    if "depth" in t:
        assert torch.equal(decisions["halting.repeats"], t["depth"] + 1)
        shares = torch.bincount(t["depth"].flatten(), minlength=model.config.depth.repeats).double()
        if "balancing_ratio" in t:
            assert distance(shares / t["depth"].numel(), t["balancing_ratio"]) <= VALUE
    selected = golden.part("selected")
    if selected:
        repeats = torch.zeros_like(t["tokens"])
        for columns in selected.values():
            repeats.scatter_add_(1, columns, torch.ones_like(columns))
        assert torch.equal(decisions["halting.repeats"], repeats)
    # Of a logit that is its own gate the code asks 0.5, as if it were a probability.
    halting = model.config.halting
    bare = isinstance(halting, ExpertChoice) and halting.gate == "none"
    if "sampling_acc" in t and not (bare and halting.sampling == "loss"):
        assert distance(decisions["halting.agreement"], t["sampling_acc"]) <= VALUE


def test_states_between(golden) -> None:
    """After each module of the code that a repeat, or a layer, ends with."""
    model = imported(golden).eval()
    stack = model.decoder
    hidden = model(golden.tensors["tokens"], trace=True).hidden["decoder"]
    places = stack.options.depth.places()
    if isinstance(model.config.halting, NoHalting):
        ends = list(range(len(places)))
    elif isinstance(model.config.halting, ExpertChoice):
        ends = [p.application for p in places if p.repeat is None or p.is_last]
    else:  # the module of all recursions returns what is not the state of the last
        ends = [places[0].application, None, len(hidden) - 2]  # the last, if none went deepest
    for module, state in golden.part("layer_out").items():
        place = ends[int(module)]
        if place is not None:
            assert distance(hidden[place + 1], state) <= VALUE, module
    if isinstance(model.config.halting, TokenChoice):
        seen = []
        stack.layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(golden.tensors["tokens"])
        assert distance(seen[0], golden.part("layer_out")["1"]) <= VALUE


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model = from_mor(golden.config, golden.part("param"))
    maps = mor_maps(model.config, golden.config)
    assert_imported_once(model, maps, golden.part("param"))


def test_a_checkpoint_with_all_names_loads(golden) -> None:
    parameters = dict(golden.part("param"))
    for first, *others in golden.config["tied_parameters"]:
        parameters |= {name: parameters[first].clone() for name in others}
    model = from_mor(golden.config, parameters)
    assert (
        distance(model.eval()(golden.tensors["tokens"]).logits, golden.tensors["logits"]) <= VALUE
    )
    first, *others = next(g for g in golden.config["tied_parameters"] if "q_proj" in g[0])
    with pytest.raises(ValueError, match="differs from"):
        from_mor(golden.config, parameters | {others[0]: parameters[first] + 1.0})


def test_what_the_group_makes_holds_its_input(golden) -> None:
    """x + g · b(x) with b(x) less x is seen."""
    model = imported(golden).eval()
    halting = model.config.halting
    if isinstance(halting, NoHalting):
        return
    gated = type(halting).gated
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(halting), "gated", lambda self, begun, x, gate: gated(self, begun, x - begun, gate)
        )
        found = model(golden.tensors["tokens"]).logits
    assert distance(found, golden.tensors["logits"]) > 1e-4
