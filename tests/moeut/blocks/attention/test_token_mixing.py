"""Token mixing is its formula, knows no padding, and is refused where it cannot be."""

import pytest
import torch
from torch.nn import functional as F

from moeut.blocks.attention import AttentionContext, Participation, TokenMixing
from moeut.blocks.routing import RoutingContext
from moeut.blocks.value_embeddings import ValueEmbeddings
from moeut.options import OptionError
from moeut.recurrence.mixture import ExpertChoice, TokenChoice
from moeut.recurrence.stick_breaking import StickBreaking
from moeut.sizing import macs_per_token

OPTIONS = {"norm": "post", "norm_kind": "rms", "norm_weights": False, "norm_epsilon": 1e-5}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
CHANNELS = TokenMixing(max_length=6, hidden_size=7)
POSITIONS = TokenMixing(max_length=6, hidden_size=7, norm_over="positions")


@pytest.fixture
def make(make_model):
    def make(options=POSITIONS, form="encoder_classifier", **others):
        others = {"repeats": 1, "group": 1, "position": "none"} | OPTIONS | others
        return make_model(form, attention=options, **others).eval()

    return make


def rms(x, dim):
    return x / (x.square().mean(dim, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(("options", "dim"), [(CHANNELS, -1), (POSITIONS, 1)])
@pytest.mark.parametrize("length", [6, 4])
def test_it_is_its_formula(make, options, dim, length):
    model = make(options)
    start, end = model(TOKENS[:, :length], trace=True).hidden["encoder"]
    layer = model.encoder.layers[0]
    gate, up, down = (getattr(layer.attention, name).weight for name in ("gate", "up", "down"))
    x = start.mT  # (B, D, T)
    mixed = (F.silu(x @ gate[:, :length].T) * (x @ up[:, :length].T)) @ down[:length].T
    state = rms(start + mixed.mT, dim)
    wanted = rms(state + layer.feed_forward(state, state, RoutingContext())[0], -1)
    assert (end - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("options", [CHANNELS, POSITIONS])
def test_padding_and_companions_change_nothing(make, options):
    model = make(options, repeats=3)
    real = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    both = model(TOKENS, source_mask=real).logits
    assert (model(TOKENS[:1, :4]).logits - both[:1]).abs().max() < 1e-12
    assert (model(TOKENS[1:]).logits - both[1:]).abs().max() < 1e-12
    assert (model(TOKENS).logits[:1] - both[:1]).abs().max() > 1e-3


def test_it_mixes_who_is_seen_and_what_is_given(make):
    """Tokens that are not seen count as 0; a source, its added values, and shared tokens join."""
    layer = make().encoder.layers[0].attention
    x, y, values = torch.randn(3, 2, 6, 16, generator=torch.Generator().manual_seed(1)).double()
    active = torch.tensor([[True, False, True, True, False, True], [True] * 6])

    def mixed(x):
        return layer(x, x, AttentionContext()).output

    seen = layer(x, x, AttentionContext(visible=active)).output
    assert (seen - mixed(x * active[..., None])).abs().max() < 1e-13
    added = RoutingContext(added_values=lambda asked: values.unsqueeze(1) * asked.unsqueeze(1))
    plainly = layer(x, y, AttentionContext(routing=added)).output
    assert (plainly - mixed(y + values * x)).abs().max() < 1e-13
    source = layer.project_source(x, y, added)
    assert torch.equal(layer(x, x, AttentionContext(), source=source).output, plainly)
    first = layer(x, x, AttentionContext(), participation=Participation(is_shared=True))
    later = Participation(active, first.kept, is_shared=True)
    wanted = mixed(torch.where(active[..., None], y, x))
    assert (
        layer(y, y, AttentionContext(), participation=later).output - wanted
    ).abs().max() < 1e-13
    not_shared = Participation(active, first.kept)
    assert torch.equal(layer(y, y, AttentionContext(), participation=not_shared).output, mixed(y))


DECIDES = {
    "expert_choice": {"halting": ExpertChoice()},
    "token_choice": {"halting": TokenChoice()},
    "shares": {"halting": TokenChoice(), "shared_keys": "update"},
    "stick_breaking": {"halting": StickBreaking(threshold=0.6)},
    "value_embeddings": {"value_embeddings": ValueEmbeddings(layers="alternate")},
}


@pytest.mark.parametrize("name", DECIDES)
def test_who_takes_part_depends_on_no_padding_and_no_companion(make, name):
    model = make(CHANNELS, repeats=3, **DECIDES[name])
    for each, weight in model.named_parameters():
        if "halting" in each:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(len(each) + 4))
    real = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    both = model(TOKENS, source_mask=real)
    alone = model(TOKENS[:1, :4])
    assert (alone.logits - both.logits[:1]).abs().max() < 1e-12
    assert (model(TOKENS[1:]).logits - both.logits[1:]).abs().max() < 1e-12
    if "halting" in DECIDES[name]:
        repeats = both.decisions["encoder"]["halting.repeats"][real]
        assert repeats.min() < repeats.max()


def test_gradients(make):
    layer = make().encoder.layers[0].attention
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, x, AttentionContext()).output, x)


def test_its_work_is_three_products_over_positions(make):
    config = make().config
    without = macs_per_token(
        make(TokenMixing(max_length=6, hidden_size=6)).config, sequence_length=5
    )
    assert macs_per_token(config, sequence_length=5) - without == 3 * config.d_model


def test_what_it_cannot_do_is_refused(make):
    with pytest.raises(ValueError, match="length 7: token mixing ends at max_length=6"):
        make()(torch.zeros(1, 7, dtype=torch.int64))
    for changes, option in (
        ({"form": "decoder_lm"}, "attention.kind"),
        ({"form": "encoder_decoder"}, "attention.kind"),
        ({"norm": "pre"}, "attention.norm_over"),
        ({"norm_kind": "layer"}, "attention.norm_over"),
        ({"norm_weights": True}, "attention.norm_over"),
        ({"position": "rotary"}, "position.kind"),
        ({"shared_keys": "first", "repeats": 2}, "shared_keys"),
    ):
        with pytest.raises(OptionError) as caught:
            make(**changes)
        assert caught.value.option == option
    with pytest.raises(OptionError, match="no effect without heads"):
        TokenMixing(num_heads=2)
