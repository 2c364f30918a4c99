"""Recurrent models of arithmetic give the numbers of mcleish7/arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.blocks.feed_forward.gated import GatedFeedForward
from moeut.interop import from_arithmetic, mapping
from moeut.interop.arithmetic import arithmetic_maps
from moeut.recurrence.injection import NoInjection
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.start import InputStart, ZeroStart
from runners.training.criterion import progressive_weight

pytestmark = pytest.mark.golden

FOLDERS = ("arithmetic",)
RESTATED = "arithmetic"
VALUE, GRADIENT = 1e-10, 1e-9


def arch(golden) -> dict[str, Any]:
    return golden.config["arch"]


def imported(golden, **changes: Any):
    model = from_arithmetic(arch(golden), golden.part("param"))
    if not changes:
        return model
    other = moeut.build(dataclasses.replace(model.config, **changes)).double()
    other.load_state_dict(model.state_dict())
    return other


def number(golden, name: str) -> int:
    return int(golden.tensors[name].item())


def passes(golden) -> list[str]:
    return sorted({name.rsplit(".", 1)[0] for name in golden.tensors if name.endswith(".k")})


def run(golden, model, name: str) -> Any:
    """Return the logits of a pass with the offset and the start that the code drew."""
    t, tokens = golden.tensors, golden.tensors["tokens"]
    if f"{name}.abacus_offset" in t:
        offset = t[f"{name}.abacus_offset"].reshape(())
        model.decoder.position.draw_offset = lambda device: offset
    is_drawn = not isinstance(model.config.state.start, InputStart)
    n, k = (number(golden, f"{name}.{which}") for which in "nk")
    embedded = model._embed(model.embedding, tokens, "tokens")
    state = t[f"{name}.initial_state"] if is_drawn else None
    given: dict[str, Any] = {"tokens": tokens, "trace": True}
    if isinstance(model.config.state.injection, NoInjection) and n:
        # No model of ours cuts gradients off from its input; here in two passes.
        with torch.no_grad():
            before = model.decoder(
                embedded, Inputs(initial_state=state, num_repeats=n, **given)
            ).repeats
        out = model.decoder(embedded, Inputs(initial_state=before[-1], num_repeats=k, **given))
        out.repeats[:0] = before
        return model._read_out(out.states), out
    # A model of one repeat has no other depth, and nothing to cut off.
    deep: dict[str, Any] = {"num_repeats": n + k} if model.config.depth.is_shared else {}
    if n and deep:
        deep["backprop_repeats"] = k
    out = model.decoder(embedded, Inputs(initial_state=state, **deep, **given))
    return model._read_out(out.states), out


def loss_of(golden, logits: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of the next tokens that count."""
    tokens = golden.tensors["tokens"]
    targets = tokens[:, 1:].clone()
    if arch(golden)["mask_before_equals"]:
        equals = (tokens == golden.config["equals_token"]).int().argmax(1)
        targets[torch.arange(1, tokens.shape[1]) <= equals.unsqueeze(1)] = 0
    targets[targets == 0] = -100
    reduction = {"none": "sum"}.get(arch(golden)["loss_reduction"], "mean")
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction=reduction)
    return loss / targets.numel() if reduction == "sum" else loss


def total(golden, losses: list[torch.Tensor]) -> torch.Tensor:
    """Return the progressive loss, rounded as the code rounds it."""
    options = arch(golden)
    alpha, most = options["alpha"], options["maximal_recurrence"]
    backprop = max(most // 2 if options["max_backprop"] is None else options["max_backprop"], 1)
    nothing = torch.zeros(1)  # of float32, so that the sum is too
    full, sampled = {0.0: (losses[0], nothing), 1.0: (nothing, losses[0])}.get(alpha) or losses
    loss = (1 - alpha) * full + alpha * sampled
    if options["throttle"]:
        loss = loss * progressive_weight(most, backprop)
    return loss


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def test_passes_progressive_loss_and_gradients(golden) -> None:
    model, t = imported(golden).train(), golden.tensors
    losses = []
    for name in passes(golden):
        logits, out = run(golden, model, name)
        for index, state in golden.part(f"{name}.state").items():
            assert distance(out.repeats[int(index) - 1], state) <= VALUE, (name, index)
        assert distance(logits, t[f"{name}.logits"]) <= VALUE, name
        losses.append(loss_of(golden, logits))
        assert distance(losses[-1], t[f"{name}.loss"]) <= VALUE, name
        if name == "pass.0":
            assert distance(logits[:, -1], t["last_logits"]) <= VALUE
    loss = total(golden, losses)
    assert distance(loss, t["loss"]) <= (VALUE if t["loss"].dtype == torch.float64 else 1e-6)
    loss.sum().backward()
    maps = arithmetic_maps(model.config, arch(golden))
    theirs = {
        n: golden.part("grad").get(n, torch.zeros_like(p)) for n, p in golden.part("param").items()
    }
    expected = mapping.to_ours(maps, theirs, ignore=("*.init_L",))
    for name, parameter in model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert distance(found, expected.pop(name)) <= GRADIENT, name
    assert not expected


def in_evaluation(golden):
    """Return the model in evaluation, begun from zeros where it draws its start."""
    state = imported(golden).config.state
    if not isinstance(state.start, InputStart):
        state = dataclasses.replace(state, start=ZeroStart())
    return imported(golden, state=state).eval()


@torch.no_grad()
def test_evaluation(golden) -> None:
    model, t = in_evaluation(golden), golden.tensors
    repeats = arch(golden)["maximal_recurrence_in_eval"]
    logits = model(t["tokens"], num_repeats=repeats).logits
    assert distance(logits, t["eval.logits"]) <= VALUE
    assert distance(loss_of(golden, logits), t["eval.loss"]) <= VALUE


@torch.no_grad()
def test_greedy_decoding_with_a_cache(golden) -> None:
    model, t = in_evaluation(golden), golden.tensors
    repeats = number(golden, "greedy.steps")
    cache, new, found = model.new_cache(repeats), t["greedy.prompt"], []
    for _ in range(t["greedy.tokens"].shape[1]):
        logits = model(new, cache=cache, num_repeats=repeats).logits
        new = logits[:, -1:].argmax(-1)
        found.append(new)
    assert torch.equal(torch.cat(found, 1), t["greedy.tokens"])


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model = imported(golden)
    theirs = {n: p for n, p in golden.part("param").items() if not n.endswith("init_L")}
    assert_imported_once(model, arithmetic_maps(model.config, arch(golden)), theirs)


@torch.no_grad()
def test_the_other_half_as_the_gate_is_seen(golden) -> None:
    model, t = in_evaluation(golden), golden.tensors
    if not isinstance(model.config.feed_forward, GatedFeedForward):
        return
    for layer in model.decoder.layers:
        gate, up = layer.feed_forward.gate, layer.feed_forward.up
        layer.feed_forward.gate, layer.feed_forward.up = up, gate
    repeats = arch(golden)["maximal_recurrence_in_eval"]
    assert distance(model(t["tokens"], num_repeats=repeats).logits, t["eval.logits"]) > 1e-4


def test_what_is_not_supported_is_refused(golden) -> None:
    options = arch(golden) | {"norm_scheme": "shaped"}
    with pytest.raises(ValueError, match="norm_scheme='shaped': supported are post, pre"):
        from_arithmetic(options, golden.part("param"))
