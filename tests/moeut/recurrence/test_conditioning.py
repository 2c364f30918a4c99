"""What tells repeats apart: each kind by hand, and a new model that is the one without."""

import math

import pytest
import torch
from recurrent_cases import batch, state

from moeut.blocks.attention import AttentionContext
from moeut.options import OptionError
from moeut.recurrence import conditioning as c
from moeut.recurrence.row_depth import RowDepth
from moeut.sizing import macs_per_token

KINDS = {
    "coordinates": c.Coordinates(),
    "learned_steps": c.Coordinates(positions=False, steps="learned", size=3),
    "beside": c.Coordinates(combine="concatenate", steps="learned", size=3),
    "vectors": c.Vectors(),
    "network": c.Network(frequencies=5),
    "film": c.Film(size=3),
    "adaptive_norm": c.AdaptiveNorm(),
}
CAUSAL = AttentionContext(is_causal=True)
REPEATS = 4


def made(make_recurrent, kind, **options):
    model = make_recurrent(
        "decoder_lm", "input_linear", "dense", conditioning=KINDS[kind], position="none", **options
    ).eval()
    torch.manual_seed(4)
    for parameter in own(model).parameters():
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def own(model):
    stack = model.decoder.controllers
    return stack["coordinates"] if "coordinates" in stack else stack["conditioning"]


def signal(number, width=16):
    frequencies = 10000.0 ** (-torch.arange(8).double() / 7)
    angles = number * frequencies
    return torch.cat((angles.sin(), angles.cos()))


def network(module, number):
    angles = number * 10000.0 ** (-torch.arange(5).double() / 5)
    inputs = torch.cat((angles.cos(), angles.sin()))
    hidden = torch.nn.functional.silu(module.up @ inputs + module.up_bias)
    return module.down @ hidden + module.down_bias


def by_hand(model, kind, tokens, shift=0):
    """Apply prelude, conditioned repeats and coda, layer by layer."""
    stack, module = model.decoder, own(model)
    first, *group, last = stack.layers
    embedded = x = first(model.embedding(tokens), CAUSAL).x
    inject = stack.controllers["injection"].rule
    for t in range(REPEATS):
        late = min(t, 2)  # three entries are learned
        if kind == "coordinates":
            x = x + torch.stack([signal(p + shift) for p in range(6)]) + signal(t)
        elif kind == "learned_steps":
            x = x + module.table[late] * 4.0  # the root of the width
        elif kind == "beside":
            places = torch.stack([signal(p) for p in range(6)]).expand_as(x)
            steps = (module.table[late] * 4.0).expand_as(x)
            x = torch.cat((x, places, steps), dim=-1) @ module.weight.T
        elif kind == "vectors":
            x = x + module.table[t]
        x = inject(x, embedded)
        if kind == "network":
            x = x + network(module, t)
        elif kind == "film":
            x = x * (1 + module.table[late, 0]) + module.table[late, 1]
        context = CAUSAL
        if kind == "adaptive_norm":
            x = adapted(group, x, module.table[t])
        else:
            for layer in group:
                x = layer(x, context).x
    return model.head(stack.final_norm(last(x, CAUSAL).x), model.embedding.weight)


def adapted(group, x, pair):
    for layer in group:
        normed = layer.attention_norm(x) * (1 + pair[0]) + pair[1]
        x = x + layer.attention(normed, normed, CAUSAL).output
        normed = layer.feed_forward_norm(x) * (1 + pair[0]) + pair[1]
        x = x + layer.feed_forward(normed, normed, CAUSAL.routing)[0]
    return x


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_kind_is_its_formula(make_recurrent, kind):
    model = made(make_recurrent, kind, norm="pre")
    tokens = batch(model)[0][0]
    wanted = by_hand(model, kind, tokens)
    # The network's sinusoids are of float32.
    assert (model(tokens).logits - wanted).abs().max() < (1e-6 if kind == "network" else 1e-12)
    other = make_recurrent("decoder_lm", "input_linear", "dense", position="none", norm="pre")
    other.load_state_dict({n: t for n, t in model.state_dict().items() if n in other.state_dict()})
    assert (other.eval()(tokens).logits - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["vectors", "film", "adaptive_norm"])
@pytest.mark.parametrize("blocks", ["dense", "experts"])
@torch.no_grad()
def test_a_new_model_is_the_one_without(make_recurrent, kind, blocks):
    plain = make_recurrent("decoder_lm", "input_linear", blocks).eval()
    model = make_recurrent("decoder_lm", "input_linear", blocks, conditioning=KINDS[kind]).eval()
    assert own(model).table.unique().tolist() == [0.0]
    model.load_state_dict(plain.state_dict(), strict=False)
    tokens = batch(model)[0][0]
    assert torch.equal(model(tokens).logits, plain(tokens).logits)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_rows_of_their_own_depth_count_their_own_repeats(make_recurrent, kind):
    """In a pass of more repeats than they need, with a part without gradient."""
    model = made(make_recurrent, kind)
    tokens = batch(model)[0][0]
    first, last = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 2])
    size = {"num_repeats": 7, "backprop_repeats": 3}
    logits = model(tokens, **size, row_depth=RowDepth(first, last)).logits
    for row in range(3):
        deep = int(first[row] + last[row])
        alone = model(tokens[row : row + 1], num_repeats=deep).logits
        assert (logits[row] - alone[0]).abs().max() < 1e-11


def test_positions_of_a_row_are_shifted_in_training_alone(make_recurrent):
    """By a random number below its length, the same in all repeats."""
    plain = made(make_recurrent, "coordinates")
    shifted = make_recurrent(
        "decoder_lm", "input_linear", "dense", position="none",
        conditioning=c.Coordinates(shift="random"),
    )  # fmt: skip
    shifted.load_state_dict(plain.state_dict())
    tokens = batch(plain)[0][0]
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, 4:] = False
    with torch.no_grad():
        wanted = plain(tokens, padding_mask=real).logits
        assert torch.equal(shifted.eval()(tokens, padding_mask=real).logits, wanted)
        torch.manual_seed(5)
        found = shifted.train()(tokens, padding_mask=real).logits
        torch.manual_seed(5)
        shifts = (torch.rand(len(tokens), 1)[:, 0] * real.sum(dim=1)).long()
    assert len(set(shifts.tolist())) > 1
    assert (shifts < real.sum(dim=1)).all()
    for row, shift in enumerate(shifts.tolist()):
        moved = by_hand(plain, "coordinates", tokens[row : row + 1], shift=shift)
        kept = real[row]
        assert (found[row] - moved[0])[kept].abs().max() < 1e-11


def test_a_projection_of_signals_is_counted(make_recurrent):
    plain = make_recurrent("decoder_lm", conditioning=KINDS["learned_steps"]).config
    beside = make_recurrent("decoder_lm", conditioning=KINDS["beside"]).config
    more = macs_per_token(beside, sequence_length=6) - macs_per_token(plain, sequence_length=6)
    assert more == 3 * 16 * 16 * beside.depth.repeats


def test_learned_steps_begin_as_normal_noise(make_recurrent):
    model = make_recurrent(
        conditioning=c.Coordinates(steps="learned", size=4000), state=state("input", "none")
    )
    assert (own(model).table * math.sqrt(16)).std().item() == pytest.approx(1.0, rel=0.02)


def test_what_means_nothing_is_refused(make_recurrent):
    with pytest.raises(OptionError, match="size=3: has no effect without steps=learned"):
        c.Coordinates(size=3)
    with pytest.raises(OptionError, match="steps='none': nothing is left to add"):
        c.Coordinates(positions=False, steps="none")
    with pytest.raises(OptionError, match="shift='random': has no effect without positions"):
        c.Coordinates(positions=False, shift="random")
    options = {"order": "sequence", "conditioning": c.Film(), "state": state("input", "none")}
    with pytest.raises(OptionError, match="conditioning decides at each pass through the group"):
        make_recurrent("decoder_lm", "zero_add", **options)
