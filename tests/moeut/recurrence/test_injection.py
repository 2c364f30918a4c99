from dataclasses import replace

import pytest
import torch
from recurrent_cases import BOTH_GATED, CONTROLLERS, batch, loss_of, state

from moeut.blocks.attention import AttentionContext
from moeut.blocks.routing import RoutingContext
from moeut.options import OptionError
from moeut.recurrence.conditioning import AdaptiveNorm
from moeut.recurrence.controller import Pass
from moeut.recurrence.injection import AddInjection
from moeut.recurrence.start import NoiseStart, position_noise
from moeut.recurrence.state import State
from moeut.sizing import macs_per_token

CAUSAL = AttentionContext(is_causal=True)


def _unrolled(model, start, inject, tokens, repeats):
    """Apply prelude, repeats and coda by hand; dense blocks without positions."""
    first, *group, last = model.decoder.layers
    embedded = first(model.embedding(tokens), CAUSAL).x
    x = start(embedded)
    for _ in range(repeats):
        x = inject(x, embedded)
        for layer in group:
            x = layer(x, CAUSAL).x
    return model.head(model.decoder.final_norm(last(x, CAUSAL).x), model.embedding.weight)


def _rule(model):
    return model.decoder.controllers["injection"].rule


def _feed_forward(model):
    rule = _rule(model)

    def inject(x, e):
        hidden = x @ rule.up[:, :16].T + e @ rule.up[:, 16:].T + rule.up_bias
        hidden = torch.nn.functional.gelu(hidden[..., :9]) * hidden[..., 9:]
        return hidden @ rule.down.T + rule.down_bias

    return inject


def _diagonal(model):
    rule = _rule(model)
    step = (1 + rule.step.exp()).log()
    return lambda x, e: x * (-step * rule.rate.exp()).exp() + step * (e @ rule.weight.T)


INJECTIONS = {
    "add": lambda model: lambda x, e: x + e,
    "gate": lambda model: lambda x, e: x * e,
    "feed_forward": _feed_forward,
    "diagonal": _diagonal,
    "linear": lambda model: (
        lambda x, e: (
            x @ _rule(model).weight[:, :16].T
            + e @ _rule(model).weight[:, 16:].T
            + (0 if _rule(model).bias is None else _rule(model).bias)
        )
    ),
}


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("start", ["input", "zero"])
@torch.no_grad()
def test_repeats_read_state_and_input(make_recurrent, start, injection):
    options = {"feed_forward": BOTH_GATED, "linear": {"kind": "linear", "bias": True}}
    chosen = state(start, options.get(injection, injection))
    model = make_recurrent("decoder_lm", "zero_add", "dense", state=chosen, position="none").eval()
    for parameter in _rule(model).parameters():  # away from 0 and from the identity
        parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = batch(model)[0][0]
    begin = {"input": lambda e: e, "zero": torch.zeros_like}[start]
    inject = INJECTIONS[injection](model)
    wanted = _unrolled(model, begin, inject, tokens, 3)
    assert (model(tokens, num_repeats=3).logits - wanted).abs().max() < 1e-12
    swapped = _unrolled(model, begin, lambda x, e: inject(e, x), tokens, 3)
    differs = (swapped - wanted).abs().max() > 1e-3
    # Which side is the state's matters.
    assert differs == (injection not in ("add", "gate"))


@torch.no_grad()
def test_what_enters_may_be_normed_behind_the_prelude(make_recurrent):
    chosen = state("input", "linear")
    chosen = replace(chosen, norm_input=True)
    model = make_recurrent("decoder_lm", "zero_add", "dense", state=chosen, position="none").eval()
    stack, tokens = model.decoder, batch(model)[0][0]
    first, *group, last = stack.layers
    x = embedded = stack.state_norm(first(model.embedding(tokens), CAUSAL).x)
    for _ in range(3):
        x = INJECTIONS["linear"](model)(x, embedded)
        for layer in group:
            x = layer(x, CAUSAL).x
    wanted = model.head(stack.final_norm(last(x, CAUSAL).x), model.embedding.weight)
    assert (model(tokens, num_repeats=3).logits - wanted).abs().max() < 1e-12


@torch.no_grad()
def test_a_channel_of_the_diagonal_recurrence_decays_whatever_is_learned(make_recurrent):
    model = make_recurrent("decoder_lm", "noise_diagonal", "dense")
    rule = _rule(model)
    x, nothing = torch.ones(1, 1, 16).double(), torch.zeros(1, 1, 16).double()
    assert rule(x, nothing).mean().item() == pytest.approx(0.2**0.5, abs=1e-6)
    assert torch.equal(rule.weight, torch.eye(16).double())
    rule.rate.fill_(-9.0)
    rule.step.copy_(torch.linspace(-9, 9, 16))
    assert (rule(x, nothing) < 1).all()


def _output(decoder, controller, x):
    """Return what a last state x goes through, as its formula."""
    if controller == "noise_diagonal":
        return x @ decoder.output.weight.T
    if controller == "noise_linear_out":
        up, down = decoder.output.feed_forward.up, decoder.output.feed_forward.down
        return down(up(x).relu())
    return decoder.final_norm(x)


@pytest.mark.parametrize("controller", ["noise_diagonal", "noise_linear_out", "input_feed_forward"])
@torch.no_grad()
def test_the_last_state_passes_its_output_before_the_coda(make_recurrent, controller):
    """A projection, a feed-forward, or the final norm, which is one norm here and at the head."""
    model = make_recurrent("decoder_lm", controller, "dense", position="none").eval()
    decoder = model.decoder
    for parameter in (
        decoder.final_norm if decoder.output is None else decoder.output
    ).parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    output = model(batch(model)[0][0], read_repeats=[])
    x = _output(decoder, controller, output.repeats["decoder"][-1])
    x = decoder.final_norm(decoder.layers[-1](x, CAUSAL).x)
    assert (model.head(x, model.embedding.weight) - output.logits).abs().max() < 1e-12


@torch.no_grad()
def test_a_noise_start_is_noise_of_the_position(make_recurrent):
    model = make_recurrent("decoder_lm", "noise_linear", "dense", position="none").eval()
    tokens = batch(model)[0][0]
    zero = torch.zeros((), dtype=torch.int64)
    noise = position_noise(torch.arange(6).expand(3, 6), torch.zeros(3, 1).long(), zero, 16)
    inject = INJECTIONS["linear"](model)
    wanted = _unrolled(model, lambda e: noise.to(e), inject, tokens, 4)
    assert (model(tokens).logits - wanted).abs().max() < 1e-12
    assert torch.equal(noise[0], noise[2])


def test_noise_is_normal_and_a_function_of_where_it_stands():
    positions, rows = torch.arange(300).expand(40, 300), torch.arange(40).unsqueeze(1)
    seed = torch.tensor(7)
    noise = position_noise(positions, rows, seed, 32)
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01
    assert abs(noise.pow(4).mean().item() - 3) < 0.05
    for a, b in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])):
        assert abs((a * b).mean().item()) < 0.01
    assert abs((noise[..., 1:] * noise[..., :-1]).mean().item()) < 0.01
    part = position_noise(positions[3:5, 100:110], rows[3:5], seed, 32)
    assert torch.equal(part, noise[3:5, 100:110])
    assert not torch.equal(position_noise(positions, rows, seed + 1, 32), noise)


@pytest.mark.parametrize(
    ("shape", "factor", "deviation", "fourth"),
    [
        ("normal", 1.0, 1.0, 3.0),
        ("embed", 1.0, 1 / 8, 3.0),
        ("like_init", 1.0, 0.986578 * (2 / 320) ** 0.5, 2.8323),
        ("like_init", 8.0, 0.986578 * (2 / 5) ** 0.5, 2.8323),
        ("unit", 1.0, (63 / 64) ** 0.5, 3 * 63 / 65 / (63 / 64)),
    ],
)
def test_the_shapes_of_noise(shape, factor, deviation, fourth):
    """Fourth moment over the square of the variance: N(1) has 3, and 2.83 if cut at 3."""
    embedded = torch.zeros(40, 300, 64, dtype=torch.float64)
    about = Pass(embedded, torch.arange(300), None, 4, True, None, factor)
    noise = NoiseStart(shape=shape, deviation=2.0).state(about, 64, training=True) / 2
    assert noise.std().item() == pytest.approx(deviation, rel=0.01)
    assert abs(noise.mean().item()) < 0.01 * deviation
    assert (noise.pow(4).mean() / noise.var() ** 2).item() == pytest.approx(fourth, rel=0.02)
    if shape == "unit":
        assert noise.mean(-1).abs().max() < 1e-6
        assert (noise.std(-1) - 1).abs().max() < 1e-6
    if shape == "like_init":
        assert noise.abs().max().item() == pytest.approx(3 * (2 / 320) ** 0.5 * factor, rel=0.01)


def test_training_draws_new_noise_from_the_global_generator(make_recurrent):
    model = make_recurrent("decoder_lm", "noise_linear", "dense").train()
    tokens = batch(model)[0][0]
    torch.manual_seed(1)
    first, second = model(tokens).logits, model(tokens).logits
    torch.manual_seed(1)
    assert torch.equal(model(tokens).logits, first)
    assert (second - first).abs().max() > 1e-3
    same = tokens[:1].expand(2, -1)  # each row has its own
    assert (model(same).logits.diff(dim=0)).abs().max() > 1e-3
    assert torch.equal(*model.eval()(same).logits)


def test_padding_changes_no_noise_of_training(make_recurrent):
    model = make_recurrent("decoder_lm", "noise_linear", "dense").train()
    losses = []
    for width in (6, 10):
        torch.manual_seed(4)
        arguments, masks = batch(model, width=width)
        losses.append(loss_of(model, model(*arguments, **masks), width=width).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-11)


@pytest.mark.parametrize("controller", CONTROLLERS)
@torch.no_grad()
def test_autocast_leaves_the_state_in_float32(make_recurrent, controller):
    model = make_recurrent("decoder_lm", controller, "dense").float()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch(model)[0][0], trace=True)
    assert {x.dtype for x in output.repeats["decoder"]} == {torch.float32}


@pytest.mark.parametrize("start", ["zero", "noise"])
def test_a_start_that_reads_nothing_needs_an_injection(start):
    with pytest.raises(OptionError, match=rf"injection='none': start={start} needs an injection"):
        state(start, "none")


def test_compiled_noise_is_the_same(make_model):
    """Fused into the graph around it, the hashes would come out as others."""
    noisy = State(start=NoiseStart(), injection=AddInjection())
    model = make_model(
        group=1,
        attention="dense",
        feed_forward="dense",
        position="none",
        norm="pre",
        state=noisy,
        repeats=2,
    ).float()
    tokens = torch.arange(12).remainder(11).view(2, 6)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        wanted = model.eval()(tokens, padding_mask=mask).logits
        found = torch.compile(model)(tokens, padding_mask=mask).logits
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("injection", ["linear", "feed_forward", "diagonal"])
def test_the_repeated_state_may_have_another_width(make_recurrent, injection):
    wide = {"state": state("noise", injection, "linear"), "core_width": 24}
    model = make_recurrent("decoder_lm", "zero_add", "dense", **wide)
    tokens = batch(model)[0][0]
    output = model(tokens, trace=True)
    widths = [x.shape[-1] for x in output.hidden["decoder"]]
    assert widths == [16, 16, *[24] * 8, 16]
    output.logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        model.eval()
        cache = model.new_cache()
        steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(6)]
        assert (torch.cat(steps, 1) - model(tokens).logits).abs().max() < 1e-11
    layer = {"decoder.layers.1.attention.query.weight": (24, 24)}
    assert {n: tuple(p.shape) for n, p in model.named_parameters() if n in layer} == layer
    plain = make_recurrent("decoder_lm", "zero_add", "dense", state=wide["state"])
    costs = [macs_per_token(m.config, sequence_length=6) for m in (plain, model)]
    # Of 8 applications: projections, attending, feed-forward of 32; then of 4 injections and C.
    grown = 8 * (4 * (24**2 - 16**2) + 2 * 6 * 8 + 2 * 32 * 8) + 16 * 8
    inject = {"linear": 24 * 40 - 16 * 32, "diagonal": 16 * 8}
    inject["feed_forward"] = 48 * (40 + 24) - 32 * (32 + 16)
    assert costs[1] - costs[0] == grown + 4 * inject[injection]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"core_width": 20}, "core_width=20: must be a multiple of attention.head_size=8"),
        ({"position": "relative"}, "core_width=24: cannot be combined with position.kind"),
        ({"state": state("zero", "add")}, "core_width=24: cannot be combined with state.injection"),
    ],
)
def test_what_knows_one_width_is_refused(make_recurrent, changes, message):
    wide = {"state": state("noise", "linear", "linear"), "core_width": 24} | changes
    with pytest.raises(OptionError, match=message):
        make_recurrent("decoder_lm", "zero_add", "dense", **wide)


@pytest.mark.parametrize("order", ["cycle", "sequence"])
@torch.no_grad()
def test_the_input_may_enter_before_each_layer(make_recurrent, order):
    """By a rule of the layer's own, so that it makes sense in AABB too; with adaptive norms."""
    chosen = State.from_dict({"start": "zero", "injection": "linear", "before": "layer"})
    options = {"order": order, "position": "none", "repeats": 2, "norm": "post", "final_norm": True}
    own = {"state": chosen, "conditioning": AdaptiveNorm()}
    model = make_recurrent("decoder_lm", "zero_add", "dense", **own, **options).eval()
    stack = model.decoder
    table = stack.controllers["conditioning"].table.normal_(0.0, 0.3)
    rules = stack.controllers["injection"].rules
    tokens = batch(model)[0][0]
    first, *group, last = stack.layers
    e = first(model.embedding(tokens), CAUSAL).x
    x = torch.zeros_like(e)
    places = {
        "cycle": [(0, 0), (1, 0), (0, 1), (1, 1)],
        "sequence": [(0, 0), (0, 1), (1, 0), (1, 1)],
    }
    for layer, repeat in places[order]:
        scale, shift = table[repeat]
        context = replace(CAUSAL, routing=RoutingContext(modulation=(scale, shift)))
        x = group[layer](rules[layer](x, e), context).x
    wanted = model.head(stack.final_norm(last(x, CAUSAL).x), model.embedding.weight)
    assert (model(tokens).logits - wanted).abs().max() < 1e-12
