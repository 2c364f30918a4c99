"""Recurrent-depth language models give the numbers of Huginn's two codes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.interop import from_huginn, mapping
from moeut.interop.huginn import huginn_maps
from moeut.recurrence.cache import SharedSlots
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.start import ZeroStart
from runners.config.repeats import RepeatsConfig
from runners.training.criterion import depth_weight, gradient_weight
from runners.training.depth import draw_repeats

pytestmark = pytest.mark.golden

FOLDERS = ("huginn",)
RESTATED = "huginn"


def is_model(golden) -> bool:
    return "options" in golden.config


def bounds(golden) -> tuple[float, float]:
    """Return the bounds of values and gradients; one file has the code's own roundings."""
    return (1e-10, 1e-9) if golden.config["precision"] == "float64" else (1e-5, 2e-5)


def imported(golden, **changes: Any):
    model = from_huginn(golden.config["options"], golden.part("param"))
    if changes:
        config = dataclasses.replace(model.config, **changes)
        other = moeut.build(config).double()
        other.load_state_dict(model.state_dict())
        return other
    return model


def steps(golden) -> tuple[int, int]:
    return golden.config["num_steps_no_grad"], golden.config["num_steps_with_grad"]


def run(golden, model, backprop_repeats: int, state: torch.Tensor | None = None) -> Any:
    """Return the logits and what the stack gives, begun from the published noise."""
    total = sum(steps(golden))
    tokens = golden.tensors["tokens"][:, :-1]
    out = model.decoder(
        model._embed(model.embedding, tokens, "tokens"),
        Inputs(
            initial_state=golden.tensors["initial_state"] if state is None else state,
            num_repeats=total,
            backprop_repeats=backprop_repeats,
            read_repeats=range(total),
            trace=True,
        ),
    )
    return [model.head(read, model.embedding.weight) for read in out.read], out


def labels(golden) -> torch.Tensor:
    return golden.tensors.get("labels", golden.tensors["tokens"][:, 1:])


def cross_entropy(golden, logits: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.transpose(1, 2), labels(golden))


def weight(golden, without: int, with_gradient: int) -> float:
    """Return what the code multiplies the loss of a step by."""
    options = golden.config["options"]
    repeats, factor = without + with_gradient, 1.0
    if options.get("mcleish_throttle"):
        factor *= gradient_weight(repeats, with_gradient)
    if options.get("elbayad_weighing"):
        exponent = options.get("elbayad_exponent", 1.0)
        factor *= depth_weight(repeats, options["mean_recurrence"], exponent)
    return factor


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def test_states_logits_and_loss(golden) -> None:
    if not is_model(golden):
        return
    model, t, (bound, _) = imported(golden), golden.tensors, bounds(golden)
    without, with_gradient = steps(golden)
    logits, out = run(golden, model, with_gradient)
    assert distance(out.hidden[model.config.depth.prelude], t["prelude"]) <= bound
    for number, state in enumerate(out.repeats, start=1):
        assert distance(state, t[f"state.{number}"]) <= bound, number
    for name, step_logits in golden.part("step_logits").items():
        assert distance(logits[int(name) - 1], step_logits) <= bound, name
    assert distance(logits[-1], t["logits"]) <= bound
    loss = cross_entropy(golden, logits[-1])
    if "log_ppl" in t:
        assert distance(loss, t["log_ppl"]) <= bound
    assert distance(loss * weight(golden, without, with_gradient), t["loss"]) <= bound
    if "latent" in t:
        assert distance(model.decoder.final_norm(out.repeats[-1]), t["latent"]) <= bound
        assert distance(out.states, t["head_input"]) <= bound


def test_gradients_through_the_last_repeats_all_or_none(golden) -> None:
    if not is_model(golden):
        return
    without, with_gradient = steps(golden)
    total = without + with_gradient
    pairs = {"grad": with_gradient, "grad_full": total, "grad_none": 0}
    for prefix, backprop in pairs.items():
        if not golden.part(prefix):
            continue
        model = imported(golden)
        loss = cross_entropy(golden, run(golden, model, backprop)[0][-1])
        if prefix != "grad_none":
            loss = loss * weight(golden, total - backprop, backprop)
        if f"loss_{prefix.removeprefix('grad_')}" in golden.tensors:
            scaled = golden.tensors[f"loss_{prefix.removeprefix('grad_')}"]
            assert distance(loss, scaled) <= bounds(golden)[0]
        loss.backward()
        found = {
            n: torch.zeros_like(p) if p.grad is None else p.grad
            for n, p in model.named_parameters()
        }
        theirs = {
            n: golden.part(prefix).get(n, torch.zeros_like(p))
            for n, p in golden.part("param").items()
        }
        expected = mapping.to_ours(huginn_maps(model.config), theirs)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            assert distance(found[name], gradient) <= bounds(golden)[1], (prefix, name)


@torch.no_grad()
def test_greedy_decoding_and_shared_caches(golden) -> None:
    t = golden.tensors
    if "greedy.tokens" not in t:
        return
    state = dataclasses.replace(imported(golden).config.state, start=ZeroStart())
    model, total = imported(golden, state=state).eval(), sum(steps(golden))
    caches: dict[str, SharedSlots | None] = {"greedy": None}
    for name in t:
        if name.startswith("cache."):
            kind, count = name.split(".")[1].removeprefix("compress-")[0], name.split(".")[1][10:]
            caches[name.removesuffix(".logits")] = SharedSlots(int(count), in_runs=kind == "r")
    start, tokens = golden.config["greedy_prompt"], t["greedy.tokens"]
    for name, shared in caches.items():
        cache, wanted = model.new_cache(total, shared=shared), t[f"{name}.logits"]
        found = []
        for step in range(wanted.shape[1]):
            new = tokens[:, :start] if step == 0 else tokens[:, start + step - 1 : start + step]
            found.append(model(new, cache=cache, num_repeats=total).logits[:, -1])
        assert distance(torch.stack(found, 1), wanted) <= bounds(golden)[0], name
        if shared is None:
            assert torch.equal(torch.stack(found, 1).argmax(-1), tokens[:, start:])
            assert torch.equal(tokens[:, :start], t["tokens"][:, :start])


def test_published_draws_of_depth(golden) -> None:
    if is_model(golden):
        return
    for name, wanted in golden.part("steps").items():
        mean, backprop = (int(part.lstrip("meanbckpro")) for part in name.split("."))
        config = RepeatsConfig(kind="poisson_lognormal", mean=mean, draws="published")
        drawn = [
            draw_repeats(config, seed=7, step=step, backprop_repeats=backprop)
            for step in range(len(wanted))
        ]
        total = np.array(drawn)
        assert np.array_equal(np.minimum(total, backprop), wanted[:, 1].numpy()), name
        assert np.array_equal(np.maximum(total - backprop, 0), wanted[:, 0].numpy()), name


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    if is_model(golden):
        model = imported(golden)
        assert_imported_once(model, huginn_maps(model.config), golden.part("param"))


def test_one_norm_in_two_places_is_seen(golden) -> None:
    """The norm before the coda is the norm before the head; left out, other numbers come out."""
    if not is_model(golden):
        return
    model = imported(golden)
    state = dataclasses.replace(model.config.state, output="none")
    other = imported(golden, state=state)
    assert distance(run(golden, other, 0)[0][-1], golden.tensors["logits"]) > 1e-4


def test_what_is_not_supported_is_refused(golden) -> None:
    if not is_model(golden):
        return
    options = golden.config["options"]
    for change, message in (
        ({"injection_type": "none"}, "injection_type=None: supported are add, gate, linear, ffn"),
        ({"block_class_name": "SwinBlock"}, "block_class_name='SwinBlock': supported are"),
        ({"center_attention": True}, "center_attention=True: only False is supported"),
        ({"intermediate_noise_injection": 0.1}, "intermediate_noise_injection=0.1: only 0 is"),
        ({"randomize_positions_from": 32}, "randomize_positions_from=32.0: only None is"),
        ({"n_embd": "inf"}, "n_embd='inf': expected a number"),
        ({"rope_settings": 3}, "rope_settings=3: expected a section of options"),
    ):
        with pytest.raises(ValueError, match=message):
            from_huginn(options | change, golden.part("param"))
