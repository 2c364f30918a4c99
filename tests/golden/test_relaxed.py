"""Relaxed recursive Transformers give the numbers of the published code."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.blocks.own import Own
from moeut.interop import mapping
from moeut.interop.mapping import PROJECTIONS
from moeut.interop.relaxed import from_relaxed, relaxed_maps
from moeut.recurrence.schedule import Depth
from moeut.relaxing import relax

pytestmark = pytest.mark.golden

FOLDERS = ("relaxed",)
RESTATED = "relaxed"
VALUE, GRADIENT = 1e-10, 1e-9


def imported(golden) -> Any:
    return from_relaxed(golden.config, golden.part("param"))


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def test_logits_loss_and_gradients(golden) -> None:
    model, t = imported(golden).train(), golden.tensors
    logits = model(t["tokens"]).logits
    assert distance(logits, t["logits"]) <= VALUE
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), t["tokens"][:, 1:].flatten())
    assert distance(loss, t["loss"]) <= VALUE
    loss.backward()
    theirs = dict(golden.part("grad"))
    for name in golden.config["params_without_gradient"]:
        zeros = torch.zeros_like(golden.part("param")[name])
        assert theirs.setdefault(name, zeros).abs().max() == 0.0, name
    expected = mapping.to_ours(relaxed_maps(model.config, golden.config), theirs)
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert distance(found, expected.pop(name)) <= GRADIENT, name
    assert not expected


def test_states_after_each_layer(golden) -> None:
    hidden = imported(golden).eval()(golden.tensors["tokens"], trace=True).hidden["decoder"]
    for index, state in golden.part("layer_out").items():
        assert distance(hidden[int(index) + 1], state) <= VALUE, index


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model = imported(golden)
    maps = relaxed_maps(model.config, golden.config)
    assert_imported_once(model, maps, golden.part("param"))


def test_adapters_start_from_distinct_layers(golden) -> None:
    """As published, scaling · B A is that many times the best change; else it is the change."""
    before = golden.part("before_sharing")
    if not before:
        assert not golden.config.get("lora", {}).get("svd_init", False)
        return
    model = imported(golden)
    apart = Depth(group=model.config.depth.num_applications, repeats=1)
    config = dataclasses.replace(model.config, depth=apart, own=Own())
    distinct = moeut.build(config).double()
    state = distinct.state_dict()
    for name, tensor in before.items():
        _, _, index, theirs = name.split(".", 3)
        state[f"decoder.layers.{index}.{PROJECTIONS[theirs.removesuffix('.weight')]}.weight"] = (
            tensor
        )
    distinct.load_state_dict(state)
    scaling = model.config.own.adapters.scaling
    published = relax(distinct, model.config, adapters="as_published")
    scaled = relax(distinct, model.config)
    found = [dict(one.named_parameters()) for one in (model, published, scaled)]
    compared = 0
    for name in found[0]:
        if ".adapters." not in name or ".up." not in name:
            continue
        down = name.replace(".up.", ".down.")
        theirs, ours, right = (one[name] @ one[down] for one in found)
        assert distance(ours, theirs) <= VALUE, name
        assert distance(right * scaling, theirs) <= VALUE, name
        whole = name.partition(".adapters.")[0] + "." + name.split(".")[-3] + ".weight"
        assert distance(found[1][whole], found[0][whole]) <= VALUE, whole
        compared += 1
    assert compared


def test_other_scaling_and_other_repeats_are_seen(golden) -> None:
    model = imported(golden).eval()
    tokens, wanted = golden.tensors["tokens"], golden.tensors["logits"]
    own = model.config.own
    state = dict(model.state_dict())
    if own.adapters.rank:
        name = "alpha" if own.adapters.alpha else "scaling"
        half = dataclasses.replace(own.adapters, **{name: getattr(own.adapters, name) / 2})
        changed = dataclasses.replace(model.config, own=dataclasses.replace(own, adapters=half))
        other = moeut.build(changed).double().eval()
        other.load_state_dict(state)
        assert distance(other(tokens).logits, wanted) > 1e-5
    swapped = {}
    for name, tensor in state.items():
        words = name.split(".")
        if words[-1] in ("0", "1"):
            words[-1] = "1" if words[-1] == "0" else "0"
        swapped[".".join(words)] = tensor
    model.load_state_dict(swapped)
    assert distance(model(tokens).logits, wanted) > 1e-5
