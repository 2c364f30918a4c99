"""Recursions pass states back and forth, and carried states go on where a pass ended."""

import pytest
import torch

from moeut.blocks.attention import AttentionContext
from moeut.blocks.embeddings import Prefix
from moeut.blocks.updates import DeepNorm
from moeut.budget import Budget, sized_to
from moeut.options import OptionError
from moeut.recurrence.carry import Carried, Carry
from moeut.recurrence.injection import AddInjection
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.recursion import SingleLevel, TwoLevel
from moeut.recurrence.schedule import Depth
from moeut.recurrence.start import ZeroStart
from moeut.recurrence.state import State
from moeut.sizing import cache_bytes_per_token

KINDS = {
    "trm": TwoLevel(low_cycles=2),
    "hrm": TwoLevel(low_cycles=2, networks="two", high_group=1, gradient="last_updates"),
    "urm": SingleLevel(low_cycles=2),
    "singlez": SingleLevel(low_cycles=2, closes=True),
}
CARRY = Carry(steps=3, halting="right")
LENGTHS = torch.tensor([6, 3, 5])


def make(make_model, kind, form="encoder_labeller", **options):
    defaults = {"norm": "post", "repeats": 2, "recursion": KINDS[kind], "carry": CARRY}
    return make_model(form, **defaults | {"prefix": Prefix(rows=2, count=3)} | options)


def batch(rows=slice(None), width=6):
    tokens = torch.randint(0, 11, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(width) < LENGTHS[:, None]
    return tokens[rows, :width], mask[rows]


def carried(model, source, begins):
    """Return random states for a batch, the rows in ``begins`` to begin anew."""
    generator = torch.Generator().manual_seed(2)
    shape = (len(source), source.shape[1] + 2, 16)
    count = model.encoder.options.recursion.num_states
    states = [torch.randn(shape, generator=generator).double() for _ in range(count)]
    return Carried(states, torch.tensor(begins))


def unrolled(model, kind, x, states):
    """Return the states after a pass, as the papers write it, for rows without padding."""
    stack = model.encoder

    def network(x, layers):
        for layer in layers:
            x = layer(x, context).x
        return x

    tables = stack.options.position.tables(
        torch.arange(x.shape[1]), 0, x.shape[1], head_size=8, d_model=16, like=x
    )
    context = AttentionContext(rotary=tables.rotary, distances=tables.distances)
    layers = list(stack.layers)
    low, high = states[0], states[-1]
    for cycle in range(2):
        detached = cycle == 0
        for number in range(2):
            of_low = low + (high + x if len(states) == 2 else x)
            low = network(of_low, layers[:2] if kind == "hrm" else layers)
            if detached or (kind == "hrm" and number == 0):
                low = low.detach()
        if kind == "singlez":
            low = network(low, layers)
        elif kind != "urm":
            high = network(high + low, layers[2:] if kind == "hrm" else layers)
        if detached:
            low, high = low.detach(), high.detach()
    return [low, high] if len(states) == 2 else [low]


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_the_papers(make_model, kind):
    model = make(make_model, kind, attention="dense", feed_forward="dense").train()
    source, _ = batch(width=5)
    given = carried(model, source, [False, True, False])
    output = model(source, carried=given, prefix_numbers=torch.tensor([0, 2, 1]))
    weights = [torch.randn_like(state) for state in output.carried]
    loss = sum(
        (state * weight).sum() for state, weight in zip(output.carried, weights, strict=True)
    )
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    rows = model.prefix(torch.tensor([0, 2, 1]))
    x = torch.cat((rows, model.embedding(source)), dim=1)
    initial = [getattr(model.encoder, name) for name in model.encoder.names]
    states = [
        torch.stack([state[0], first.expand_as(state[1]), state[2]])  # the second row begins anew
        for first, state in zip(initial, given.states, strict=True)
    ]
    ended = unrolled(model, kind, x, states)
    read = model.head(ended[-1][:, 2:], model.embedding.weight)  # without the two prefix rows
    assert (output.logits - read).abs().max() < 1e-10
    wanted = sum((state * weight).sum() for state, weight in zip(ended, weights, strict=True))
    assert (loss - wanted).abs() < 1e-10
    expected = torch.autograd.grad(wanted, list(model.parameters()), allow_unused=True)
    for (name, _), one, other in zip(model.named_parameters(), found, expected, strict=True):
        if other is None:
            assert one is None, name
        else:
            assert (one - other).abs().max() < 1e-10, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
@torch.no_grad()
def test_without_a_carried_state_it_writes_token_by_token(make_model, kind, form):
    """The cache holds the keys of every update, and depth may be another than trained."""
    blocks = {"attention": "switch_head", "feed_forward": "sigma_moe"}
    model = make(make_model, kind, form, carry=Carry(), prefix=Prefix(), **blocks).eval()
    tokens, _ = batch()
    read = model.decode if form == "encoder_decoder" else model
    about = (model.encode(tokens.flip(1)),) if form == "encoder_decoder" else ()
    found = []
    for repeats in (1, 3):
        cache = model.new_cache(num_repeats=repeats)
        steps = [
            read(tokens[:, i : i + 1], *about, cache=cache, num_repeats=repeats).logits
            for i in range(6)
        ]
        whole = read(tokens, *about, num_repeats=repeats).logits
        assert (torch.cat(steps, dim=1) - whole).abs().max() < 1e-12
        found.append(whole)
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["trm", "hrm"])
@torch.no_grad()
def test_padding_and_other_rows_change_nothing(make_model, kind):
    model = make(make_model, kind, attention="switch_head", feed_forward="sigma_moe").eval()
    source, mask = batch()
    together = model(source, source_mask=mask)
    assert len(together.step_logits) == 3
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(source[row : row + 1, :length])
        assert (together.logits[row, :length] - alone.logits[0]).abs().max() < 1e-11
        assert (together.halting[row] - alone.halting[0]).abs().max() < 1e-11


def test_checkpointing_changes_no_gradient(make_model):
    model = make(make_model, "trm", attention="switch_head", feed_forward="sigma_moe").train()
    source, mask = batch()
    gradients = []
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        output = model(source, source_mask=mask, carried=carried(model, source, [True] * 3))
        loss = output.logits[mask].logsumexp(-1).sum() + output.auxiliary_loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for (name, _), one, other in zip(model.named_parameters(), *gradients, strict=True):
        if "halt_head" not in name:
            assert torch.equal(one, other), name


@pytest.mark.parametrize("kind", ["trm", "singlez"])
def test_gradcheck(make_model, kind):
    """In one repeat, all of which gradients flow through."""
    model = make(make_model, kind, attention="dense", feed_forward="dense", norm_kind="rms")
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(5)).double()
    stack = model.encoder.eval()
    assert torch.autograd.gradcheck(
        lambda x: stack(x, Inputs(num_repeats=1)).states, x.requires_grad_(), fast_mode=True
    )


@torch.no_grad()
def test_a_carried_loop_is_a_longer_loop(make_model):
    """A plain loop with injection goes on from its state as if it had never stopped."""
    state = State(start=ZeroStart(), injection=AddInjection())
    carry = Carry(steps=3)
    model = make_model("encoder_classifier", repeats=2, state=state, carry=carry).eval()
    source, mask = batch()
    three = model(source, source_mask=mask)
    once = model(
        source,
        source_mask=mask,
        num_repeats=6,
        carried=Carried([torch.zeros(3, 6, 16).double()], torch.tensor([True] * 3)),
    )
    assert (three.logits - once.logits).abs().max() < 1e-12
    assert (three.step_logits[0] - three.logits).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("form", "options", "said"),
    [
        ("decoder_lm", {}, r"carry=.*form='decoder_lm' writes token by token"),
        ("encoder_labeller", {"order": "sequence"}, "it takes no depth.order"),
        ("encoder_labeller", {"coda": 1}, "it takes no depth.coda"),
        ("encoder_labeller", {"repeat_norm": True}, "it takes no repeat_norm"),
        (
            "encoder_decoder",
            {
                "encoder_depth": Depth(group=2, repeats=2, coda=1),
                "carry": Carry(),
                "prefix": Prefix(),
            },
            "it takes no encoder_depth with a prelude or coda",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(make_model, form, options, said):
    with pytest.raises(OptionError, match=said):
        make(make_model, "trm", form, **options)


def test_a_carried_state_needs_the_input_again(make_model):
    with pytest.raises(
        OptionError, match=r"carry\.steps=3: needs a recursion, or state\.injection"
    ):
        make_model("encoder_classifier", repeats=2, carry=Carry(steps=3))


@pytest.mark.parametrize("kind", KINDS)
def test_depth_counts_every_update(make_model, kind):
    """DeepNorm's factor, its initial weights and a budget of a cache know how deep a pass is."""
    plain = {"prefix": Prefix(), "attention": "dense", "feed_forward": "dense"}
    deep = {"update": DeepNorm(), "initialization": "deepnorm"}
    model = make(make_model, kind, "decoder_lm", carry=Carry(), **plain, **deep)
    stack = model.config.stacks["decoder"]
    applied = len(model.decoder.schedule())
    assert applied == {"trm": 12, "hrm": 10, "urm": 8, "singlez": 12}[kind]
    assert stack.update.alpha == pytest.approx((2 * applied) ** 0.25)
    held = cache_bytes_per_token(model.config)
    wider = sized_to(model.config, Budget(cache_bytes_per_token=2 * held))
    assert wider.attention.head_size == 2 * model.config.attention.head_size
