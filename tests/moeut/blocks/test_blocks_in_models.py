"""Whatever a model's blocks are: cache, padding, companions and recomputation change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moeut.blocks.positions import Abacus
from moeut.blocks.updates import DeepNorm
from moeut.models import build
from moeut.recurrence.halting import AdaptiveComputationTime

HALTS = AdaptiveComputationTime(threshold=0.7, halted="freeze")
BLOCKS: dict[str, dict[str, Any]] = {
    "grouped": {"attention": "grouped", "norm": "sandwich", "norm_kind": "rms"},
    "grouped_relative": {"attention": "grouped", "position": "relative", "norm": "branch"},
    "grouped_geometric": {"attention": "grouped_geometric", "position": "none", "norm": "post"},
    "pairs": {"attention": "switch_head", "position": "rotary_pairs", "norm_kind": "unbiased"},
    "fire": {"attention": "dense", "position": "fire", "norm": "post"},
    "abacus": {"position": "abacus"},
    "abacus_fire": {
        "attention": "grouped",
        "position": "fire",
        "input_position": Abacus(max_length=8, digits=(1, 5, 9), source_digits=(3, 9)),
    },
    "short_convolution": {"feed_forward": "short_convolution", "norm": "sandwich"},
    "convolutional": {"feed_forward": "convolutional", "norm": "pre"},
    "clipped": {"position": "clipped", "attention": "grouped"},
    "sut": {
        "attention": "mixture",
        "feed_forward": "softmax_moe",
        "position": "clipped",
        "norm": "post",
    },
    "mixture_rotary": {"attention": "mixture", "position": "rotary", "norm": "peri"},
    "halting_convolutional": {"feed_forward": "convolutional", "halting": HALTS},
    "halting_sut": {
        "attention": "mixture",
        "feed_forward": "softmax_moe",
        "position": "clipped",
        "halting": HALTS,
    },
    "mixture_relative": {"attention": "mixture", "position": "absolute_gate"},
    "deepnorm": {"norm": "post", "update": DeepNorm()},
    "gated": {"attention": "dense", "feed_forward": "gated", "norm": "branch"},
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3]])


@pytest.fixture(params=BLOCKS)
def blocks(request) -> dict[str, Any]:
    return BLOCKS[request.param]


@torch.no_grad()
def test_cache_is_the_whole_pass(make_model, blocks):
    model = make_model(**blocks).eval()
    whole = model(TOKENS).logits
    cache = model.new_cache()
    steps = [model(TOKENS[:, a:b], cache=cache).logits for a, b in ((0, 3), (3, 4), (4, 6))]
    assert (torch.cat(steps, dim=1) - whole).abs().max() < 1e-12


@torch.no_grad()
def test_cache_of_rows_of_different_length_is_each_row_alone(make_model, blocks):
    model = make_model(**blocks).eval()
    prompt = torch.tensor([True, True, True]), torch.tensor([True, False, False])
    cache = model.new_cache()
    model(TOKENS[:2, :3], padding_mask=torch.stack(prompt), cache=cache)
    model(TOKENS[:2, 3:4], cache=cache)
    last = model(TOKENS[:2, 4:5], cache=cache).logits[:, 0]
    for row, length in enumerate((3, 1)):
        alone = torch.cat((TOKENS[row, :length], TOKENS[row, 3:5]))
        assert (model(alone[None]).logits[0, -1] - last[row]).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("form", ["decoder_lm", "encoder_classifier", "encoder_decoder"])
def test_padding_and_companions_change_nothing(make_model, blocks, form):
    model = make_model(form, **blocks).eval()
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [True] * 5 + [False]])

    def logits(rows, length):
        real = mask[rows, :length]
        if form == "decoder_lm":
            return model(TOKENS[rows, :length], padding_mask=real).logits[:, :4]
        if form == "encoder_classifier":
            return model(TOKENS[rows, :length], source_mask=real).logits
        return model(TOKENS[rows, :length], TOKENS[rows, 1:4], source_mask=real).logits

    assert (logits(slice(0, 1), 4) - logits(slice(0, 3), 6)[:1]).abs().max() < 1e-12


def test_checkpointing_changes_nothing(make_model, blocks):
    gradients = []
    for recompute in (False, True):
        model = make_model(**blocks)
        model.activation_checkpointing = recompute
        model(TOKENS).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_documents_are_what_they_are_alone(make_model, blocks):
    model = make_model(**blocks).eval()
    packed = torch.cat((TOKENS[:1, :4], TOKENS[1:2, :5]), dim=1)
    numbers = torch.tensor([[0] * 4 + [1] * 5])
    logits = model(packed, document_numbers=numbers).logits[0]
    assert (logits[:4] - model(TOKENS[:1, :4]).logits[0]).abs().max() < 1e-12
    assert (logits[4:] - model(TOKENS[1:2, :5]).logits[0]).abs().max() < 1e-12


def test_autocast_gives_every_parameter_a_gradient(make_config, blocks):
    torch.manual_seed(0)
    model = build(make_config(**blocks)).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(TOKENS)
        loss = output.logits.float().square().mean() + output.auxiliary_loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_compiled_model_is_the_model(make_model):
    """Many of the blocks in one graph without a break."""
    options = BLOCKS["abacus_fire"] | BLOCKS["short_convolution"]
    model = make_model(**options, group=1, repeats=1).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert (compiled(TOKENS).logits - model(TOKENS).logits).abs().max() < 1e-12


def swap_gate_and_up(layer):
    part = layer.feed_forward
    part.gate.weight.data, part.up.weight.data = part.up.weight.data, part.gate.weight.data


def swap_taps(layer):
    weight = layer.feed_forward.convolution.weight
    weight.data = weight.data.flip(-1)


def swap_key_heads(layer):
    weight = layer.attention.key.weight
    weight.data = weight.data.roll(layer.attention.head_size, 0)


def swap_experts(layer):
    weight = layer.feed_forward.down
    weight.data = weight.data.roll(1, 0)


def swap_norms(layer):
    layer.attention_norm, layer.attention_second_norm = (
        layer.attention_second_norm,
        layer.attention_norm,
    )


def shift_distances(layer):
    weight = layer.attention.relative.weight
    weight.data = weight.data.roll(1, -1)


@pytest.mark.parametrize(
    ("case", "mutate"),
    [
        ("gated", swap_gate_and_up),
        ("short_convolution", swap_taps),
        ("grouped", swap_key_heads),
        ("grouped", swap_norms),
        ("sut", swap_experts),
        ("clipped", shift_distances),
    ],
)
@torch.no_grad()
def test_a_mistake_would_show(make_model, case, mutate):
    model = make_model(**BLOCKS[case]).eval()
    logits = model(TOKENS).logits
    mutate(model.decoder.layers[0])
    assert (model(TOKENS).logits - logits).abs().max() > 1e-4
