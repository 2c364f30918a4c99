"""All of it in one model: MoEUT with outer layers, injection, random depth, halting and a gate.

In every form, and with every way of halting: it trains at depths of its own in each step, goes on
from a file bit by bit, and decodes what a whole pass computes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mechanism_cases import FORMS, Tree, attention, configure, feed_forward
from torch import Tensor
from torch.nn import functional as F

import moeut
from moeut.decoding import greedy_decode
from moeut.recurrence.controller import HALTING

TOKENS = torch.tensor([[3, 4, 5, 3, 6], [5, 4, 4, 6, 3], [6, 3, 5, 4, 4]])
REAL = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
DEPTHS = (2, 4, 1, 3)
"""Repeats of each step, of which the last two have gradients."""
EVERYTHING: Tree = {
    **attention("switch_head"),
    **feed_forward("sigma_moe"),
    "depth": {"prelude": 1, "group": 2, "repeats": 3, "coda": 1},
    "state": {"start": "noise", "injection": "linear"},
    "conditioning": "film",
    "update": "copy_gate",
    "own": {"routers": True, "norms": True},
    "position": "rotary",
}
EVALUATE = {"expert_choice": {"evaluate": "threshold"}}


def build(form: str, halting: str) -> Any:
    options = {"halting": {"kind": halting, **EVALUATE.get(halting, {})}}
    torch.manual_seed(0)
    return moeut.build(configure(form, EVERYTHING | options))


def call(model: Any, **options: Any) -> moeut.ModelOutput:
    form = model.config.form
    if form == "encoder_decoder":
        masks = {"source_mask": REAL, "target_mask": REAL}
        output = model(TOKENS, TOKENS.flip(1), **masks, **options)
    else:
        masks = {("padding_mask" if form == "decoder_lm" else "source_mask"): REAL}
        output = model(TOKENS, **masks, **options)
    return output


def update(model: Any, optimizer: Any, depths: tuple[int, ...]) -> set[str]:
    """Train a step at each depth; return the names of what got gradients."""
    learned = set()
    for depth in depths:
        optimizer.zero_grad()
        torch.manual_seed(depth)
        output = call(model, num_repeats=depth, backprop_repeats=2)
        logits = output.logits
        logits = logits[REAL] if logits.dim() == 3 else logits
        targets = torch.arange(len(logits)) % 3
        (F.cross_entropy(logits, targets) + output.auxiliary_loss).backward()
        named = model.named_parameters()
        learned |= {name for name, w in named if w.grad is not None and bool(w.grad.any())}
        optimizer.step()
    return learned


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("halting", HALTING)
def test_it_learns_and_goes_on_from_a_file(form: str, halting: str, tmp_path: Path) -> None:
    model = build(form, halting).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    learned = update(model, optimizer, DEPTHS[:2])
    model.save(tmp_path)
    state = copy.deepcopy(optimizer.state_dict())
    learned |= update(model, optimizer, DEPTHS[2:])
    again = moeut.load(tmp_path).train()
    fresh = torch.optim.AdamW(again.parameters(), lr=1e-2)
    fresh.load_state_dict(state)
    update(again, fresh, DEPTHS[2:])
    wanted = model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.state_dict().items())
    assert all(tensor.isfinite().all() for tensor in wanted.values())
    idle = {name for name, _ in model.named_parameters()} - learned
    assert idle == set()


@pytest.mark.parametrize("form", [form for form in FORMS if "decoder" in form])
@pytest.mark.parametrize("halting", HALTING)
@torch.no_grad()
def test_it_decodes_what_a_whole_pass_computes(form: str, halting: str) -> None:
    model = build(form, halting).double().eval()
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():  # what starts at zero acts, and tokens halt where they may
        weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    both = form == "encoder_decoder"
    about = (model.encode(TOKENS.flip(0)),) if both else ()
    read = model.decode if both else model
    for repeats in (2, 4):
        cache = model.new_cache(num_repeats=repeats)
        steps: list[Tensor] = [
            read(TOKENS[:, i : i + 1], *about, cache=cache, num_repeats=repeats).logits
            for i in range(5)
        ]
        whole = read(TOKENS, *about, num_repeats=repeats)
        assert (torch.cat(steps, dim=1) - whole.logits).abs().max() < 1e-12
    decoded = greedy_decode(
        model, TOKENS, REAL, bos=1, eos=2, pad=0, max_length=3, suppress_eos=True,
        bidirectional_prompt=False,
    )  # fmt: skip
    assert decoded.tokens.shape == (3, 3)
