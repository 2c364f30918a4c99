"""Looped language models with a stable injection give the numbers of Parcae's code."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.interop import from_parcae, mapping
from moeut.interop.parcae import layer_names, parcae_maps
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.row_depth import RowDepth

pytestmark = pytest.mark.golden

FOLDERS = ("parcae",)
RESTATED = "parcae"
VALUE, GRADIENT = 1e-10, 1e-9


def imported(golden, **changes: Any):
    options = golden.config["options"] | {"rope_base": golden.config["rope_base"]}
    model = from_parcae(options, golden.part("param"))
    if not changes:
        return model
    other = moeut.build(dataclasses.replace(model.config, **changes)).double()
    other.load_state_dict(model.state_dict())
    return other


def depth(golden, *, longer: int = 0) -> dict[str, Any]:
    """Return what a pass is called with; ``longer`` adds repeats in which all rows wait."""
    first = golden.tensors["steps_without_gradient"]
    last = golden.tensors["steps_with_gradient"]
    batch = golden.tensors["tokens"].shape[0]
    if first.numel() == 1:  # one depth for all
        first, last = (steps.reshape(1).expand(batch) for steps in (first, last))
    with_gradient = int(last.max()) + longer
    return {
        "num_repeats": int(first.max()) + longer + with_gradient,
        "backprop_repeats": with_gradient,
        "row_depth": RowDepth(first, last),
    }


def run(golden, model, **options: Any) -> Any:
    """Return the logits and what the stack gives, begun from the published noise."""
    tokens = golden.tensors["tokens"][:, :-1]
    state = golden.tensors["initial_state"]
    inputs = Inputs(tokens=tokens, initial_state=state, trace=True, **options)
    out = model.decoder(model._embed(model.embedding, tokens, "tokens"), inputs)
    return model.head(out.states, model.embedding.weight), out


def loss_of(golden, logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.transpose(1, 2), golden.tensors["tokens"][:, 1:])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


@pytest.mark.parametrize("longer", [0, 2])
def test_states_logits_loss_and_gradients(golden, longer) -> None:
    """In the pass that the code makes, and in a static one of more repeats than are due."""
    model, t = imported(golden), golden.tensors
    deep = depth(golden, longer=longer)
    logits, out = run(golden, model, **deep)
    assert distance(out.repeats[-1], t["final_state"]) <= VALUE
    assert distance(logits, t["logits"]) <= VALUE
    loss = loss_of(golden, logits)
    assert distance(loss, t["loss"]) <= VALUE
    loss.backward()
    unused = golden.config["params_without_gradient"]
    theirs = {name: g for name, g in golden.part("grad").items() if name not in unused}
    expected = mapping.to_ours(parcae_maps(model.config), theirs, ignore=unneeded(model))
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= GRADIENT, name
    assert not expected


def unneeded(model) -> tuple[str, ...]:
    """Return the tables without a gate, and the gates without a table."""
    layers = model.config.value_embeddings.list
    return tuple(
        name
        for layer, theirs in enumerate(layer_names(model.config))
        for name in (f"value_embeds.{layer}.weight", f"{theirs}.attn.ve_gate.weight")
        if layer not in layers
    )


def test_what_the_core_gives_to_rows_that_move(golden) -> None:
    model, t, deep = imported(golden), golden.tensors, depth(golden)
    _, out = run(golden, model, **deep)
    norm = model.decoder.state_norm or torch.nn.Identity()
    prelude = norm(out.hidden[model.config.depth.prelude])
    assert distance(prelude, t["prelude"]) <= VALUE
    first, last = deep["row_depth"]
    without = deep["num_repeats"] - deep["backprop_repeats"]
    for repeat, state in enumerate(out.repeats):
        moves = first > repeat if repeat < without else last > repeat - without
        core = t[f"core_out.{repeat + 1}"]
        assert distance(state[moves], core[moves]) <= VALUE, repeat


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model = imported(golden)
    theirs = {n: p for n, p in golden.part("param").items() if n not in unneeded(model)}
    assert_imported_once(model, parcae_maps(model.config), theirs)


@torch.no_grad()
def test_decoding_with_a_cache_is_the_whole_pass(golden) -> None:
    model, tokens = imported(golden).eval(), golden.tensors["tokens"]
    full, cache = model(tokens).logits, model.new_cache()
    steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(tokens.shape[1])]
    assert distance(torch.cat(steps, 1), full) <= VALUE


@torch.no_grad()
def test_other_options_are_seen(golden) -> None:
    """A norm in place of the projection before the coda, and no value embeddings."""
    deep, wanted, plain = depth(golden), golden.tensors["logits"], imported(golden)
    changed = []
    if plain.config.core_width == plain.config.d_model:
        state = dataclasses.replace(plain.config.state, output="final_norm", output_bias=False)
        changed.append(moeut.build(dataclasses.replace(plain.config, state=state)).double())
        changed[-1].load_state_dict(plain.state_dict(), strict=False)
    if plain.config.value_embeddings.list:
        changed.append(imported(golden))
        for embedding in changed[-1].decoder.value_embeddings.values():
            embedding.weight.zero_()
    for other in changed:
        assert distance(run(golden, other, **deep)[0], wanted) > 1e-4


def test_what_is_not_supported_is_refused(golden) -> None:
    options = golden.config["options"] | {"injection_type": "gate"}
    with pytest.raises(ValueError, match="injection_type='gate': supported are diagonal"):
        from_parcae(options, golden.part("param"))
