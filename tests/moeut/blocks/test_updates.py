"""The copy gate is its formula, in every norm placement, and begins by copying."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.architectures import ARCHITECTURES
from moeut.blocks.attention import AttentionContext
from moeut.blocks.layer import Layer
from moeut.blocks.routing import RoutingContext
from moeut.blocks.updates import UPDATE, CopyGate, DeepNorm
from moeut.options import OptionError

CONTEXT = AttentionContext(is_causal=True, columns=torch.arange(5))
GATES = {
    "norm": {"proposal": "norm"},
    "tanh": {"proposal": "tanh"},
    "scalar": {"proposal": "norm", "gate": "scalar", "hidden_multiple": 2},
}


def make_layer(make_config, gate: dict[str, Any], **options: Any) -> Layer:
    torch.manual_seed(0)
    defaults = {"norm": "post", "attention": "geometric", "feed_forward": "dense"}
    options = {"position": "none", "update": CopyGate(**gate)} | defaults | options
    layer = Layer(make_config(**options).stacks["decoder"], 16).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def states() -> torch.Tensor:
    return torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)).double()


def parts(layer: Layer, h: torch.Tensor):
    """Return what the gate reads and what the feed-forward gives, as the placement says."""
    if layer.norm == "post":
        z = layer.attention_norm(h + layer.attention(h, h, CONTEXT).output)
        routed = plain = z
    else:
        normed = layer.attention_norm(h)
        z = h + layer.attention(normed, normed if layer.norm == "pre" else h, CONTEXT).output
        routed = layer.feed_forward_norm(z)
        plain = routed if layer.norm == "pre" else z
    return routed, layer.feed_forward(routed, plain, RoutingContext())[0]


def formula(layer: Layer, h: torch.Tensor) -> torch.Tensor:
    update = layer.update
    routed, p = parts(layer, h)
    gate = torch.sigmoid(update.down(torch.relu(update.up(routed))))
    proposal = torch.tanh(p) if update.norm is None else update.norm(p)
    return h * (1 - gate) + proposal * gate


@pytest.mark.parametrize("norm", ["pre", "post", "peri"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("feed_forward", ["dense", "sigma_moe"])
def test_a_layer_with_a_copy_gate_is_its_formula(make_config, norm, gate, feed_forward):
    layer = make_layer(make_config, GATES[gate], norm=norm, feed_forward=feed_forward)
    assert (layer.feed_forward_norm is None) == (norm == "post")
    h = states()
    output = layer(h, CONTEXT).x
    assert (output - formula(layer, h)).abs().max() < 1e-13
    # From the state between the sublayers on, it would be another function.
    routed, _ = parts(layer, h)
    assert (output - formula(layer, routed)).abs().max() > 0.1
    outputs = 1 if GATES[gate].get("gate") == "scalar" else 16
    assert layer.update.down.weight.shape == (outputs, 16 * layer.update.options.hidden_multiple)


def test_a_shut_gate_copies_and_an_open_one_replaces(make_config):
    layer = make_layer(make_config, GATES["norm"])
    h = states()
    with torch.no_grad():
        layer.update.down.weight.zero_()
        layer.update.down.bias.fill_(-800.0)
        assert torch.equal(layer(h, CONTEXT).x, h)
        layer.update.down.bias.fill_(800.0)
        assert (layer(h, CONTEXT).x - layer.update.norm(parts(layer, h)[1])).abs().max() < 1e-13


def test_gates_begin_by_copying():
    torch.manual_seed(0)
    for name in ("ndr", "ndr_gate"):
        model = moeut.build(moeut.architecture(name, form="decoder_lm", vocabulary_size=9))
        update = model.decoder.layers[0].update
        assert (update.down.bias == -3.0).all()
        gate = update._gate(torch.randn(100, 128))
        assert gate.median().item() == pytest.approx(0.047, abs=0.02)


def test_dropout_falls_on_hidden_units_and_not_on_the_proposal(make_config):
    gate = {"proposal": "norm", "dropout": 0.0}
    layer = make_layer(make_config, gate, dropout=0.999999).train()
    h = states()
    # Dropped are attention and the hidden units of the feed-forward, but not what comes of these.
    z = layer.attention_norm(h)
    gates = torch.sigmoid(layer.update.down(torch.relu(layer.update.up(z))))
    proposal = layer.update.norm(layer.feed_forward.down.bias)
    assert (layer(h, CONTEXT).x - (h * (1 - gates) + proposal * gates)).abs().max() < 1e-13
    dropped = make_layer(make_config, {}, dropout=0.999999).train()
    wanted = dropped.update.down.bias.sigmoid().expand_as(z)
    assert torch.allclose(dropped.update._gate(z), wanted, rtol=0, atol=1e-13)


def test_gate_dropout_copies_whole_tokens(make_config):
    layer = make_layer(make_config, {"gate_dropout": 0.5})
    h = states()
    torch.manual_seed(3)
    copied = (layer.train()(h, CONTEXT).x == h).sum(dim=-1)
    assert set(copied.flatten().tolist()) == {0, 16}
    assert (layer.eval()(h, CONTEXT).x != h).all()


@pytest.mark.parametrize("gate", ["tanh", "scalar"])
def test_gradients(make_config, gate):
    layer = make_layer(make_config, GATES[gate])
    names, parameters = zip(*layer.update.named_parameters(), strict=True)
    h = states()[:1].requires_grad_()

    def output(h, *parameters):
        state = {f"update.{n}": p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(layer, state, (h, CONTEXT)).x

    assert torch.autograd.gradcheck(output, (h, *parameters), atol=1e-7)


# --- whole models -----------------------------------------------------------------------

FORMS = {
    "decoder_lm": {},
    "encoder_decoder": {"source_vocabulary_size": 9},
    "encoder_classifier": {"num_classes": 4},
}
CROSSED = {
    "ndr": {"architecture": "ndr"},
    "ndr_gate": {"architecture": "ndr_gate"},
    "ndr_moe": {
        "architecture": "ndr",
        "feed_forward": {"kind": "sigma_moe", "num_experts": 6, "expert_size": 8, "top_k": 2},
    },
    "ndr_switch_head": {"architecture": "ndr_gate", "attention": {"kind": "switch_head"}},
    "gated_moeut": {"architecture": "moeut", "update": "copy_gate"},
    "halting": {"architecture": "ndr", "halting": "act"},
    "injection": {"architecture": "ndr", "state": {"injection": "add"}},
}


def make_model(name: str, form: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    section = {"d_model": 16, "attention": {"num_heads": 2}} | CROSSED[name] | options
    config = moeut.configure(moeut.blueprint(section), form=form, vocabulary_size=9, **FORMS[form])
    return moeut.build(config)


def run(model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor):
    form = model.config.form
    if form == "encoder_decoder":
        return model(tokens, tokens, source_mask=mask, target_mask=mask)
    return model(tokens, **{"padding_mask" if form == "decoder_lm" else "source_mask": mask})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(9, (4, 7), generator=torch.Generator().manual_seed(1))
    return tokens, torch.arange(7) < torch.tensor([7, 3, 5, 1])[:, None]


def loss_of(output: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if output.logits.dim() == 2:
        return F.cross_entropy(output.logits, tokens[:, 0] % 4) + output.auxiliary_loss
    return F.cross_entropy(output.logits[mask], tokens[mask]) + output.auxiliary_loss


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CROSSED)
def test_every_combination_trains(name, form):
    model = make_model(name, form).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens, mask = batch()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = loss_of(run(model, tokens, mask), tokens, mask)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CROSSED)
@torch.no_grad()
def test_padding_and_company_change_nothing(name, form):
    model = make_model(name, form).double().eval()
    tokens, mask = batch()
    logits = run(model, tokens, mask).logits
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = run(model, tokens[row : row + 1, :length], mask[row : row + 1, :length]).logits[0]
        together = logits[row] if logits.dim() == 2 else logits[row, :length]
        assert (alone - together).abs().max() < 1e-12


@pytest.mark.parametrize("name", CROSSED)
def test_activation_checkpointing_changes_no_bit(name):
    update = {} if name == "gated_moeut" else {"update": {"gate_dropout": 0.3}}
    model = make_model(name, "decoder_lm", dropout=0.2, **update).train()
    tokens, mask = batch()
    results = []
    for model.activation_checkpointing in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        loss = loss_of(run(model, tokens, mask), tokens, mask)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
@pytest.mark.parametrize("name", CROSSED)
@torch.no_grad()
def test_a_cache_is_the_full_pass(name, form):
    model = make_model(name, form).double().eval()
    tokens, mask = batch()
    decode = model
    if form == "encoder_decoder":
        memory = model.encode(tokens, source_mask=mask)
        decode = lambda tokens, **options: model.decode(tokens, memory, **options)  # noqa: E731
    cache = model.new_cache()
    steps = [decode(step, cache=cache).logits for step in tokens.split((3, 1, 1, 2), dim=1)]
    assert (torch.cat(steps, 1) - decode(tokens).logits).abs().max() < 1e-12


def test_the_kinds_are_on_the_menu():
    assert {"residual", "copy_gate"} <= set(UPDATE)
    assert {"ndr", "ndr_gate"} <= set(ARCHITECTURES)
    with pytest.raises(moeut.OptionError, match=r"update\.proposal='tan': .*did you mean 'tanh'"):
        moeut.blueprint({"architecture": "ndr", "update": {"proposal": "tan"}})


@pytest.mark.parametrize("norm", ["post", "sandwich"])
def test_deepnorm_scales_what_a_sublayer_reads(make_config, norm):
    options = {"norm": norm, "attention": "dense", "position": "none", "group": 2, "repeats": 4}
    stack = make_config(update=DeepNorm(), **options).stacks["decoder"]
    assert stack.update.alpha == pytest.approx(2.0)  # (2 · 8)^(1/4)
    torch.manual_seed(0)
    layer = Layer(stack, 16).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x = states()
    blocks = {
        "attention": lambda y: layer.attention(y, y, CONTEXT).output,
        "feed_forward": lambda y: layer.feed_forward(y, y, RoutingContext())[0],
    }
    wanted = x
    for name, block in blocks.items():
        first, second = (getattr(layer, f"{name}_{which}") for which in ("norm", "second_norm"))
        read = wanted if norm == "post" else first(wanted)
        wanted = (first if norm == "post" else second)(2.0 * wanted + block(read))
    assert (layer(x, CONTEXT).x - wanted).abs().max() < 1e-12
    assert make_config(update=DeepNorm(alpha=1.5), **options).stacks["decoder"].update.alpha == 1.5


@pytest.mark.parametrize("norm", ["pre", "peri", "branch"])
def test_deepnorm_needs_a_norm_of_the_sum(make_config, norm):
    with pytest.raises(OptionError, match="expected norm: post or sandwich") as caught:
        make_config(update=DeepNorm(), norm=norm)
    assert caught.value.option == "update.kind"
