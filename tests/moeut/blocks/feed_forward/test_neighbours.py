"""Feed-forwards that read neighbours are their formulas, and see no padding or other document."""

import copy

import pytest
import torch
from torch.nn import functional as F

from moeut.blocks.feed_forward import ConvolutionalFeedForward, GatedFeedForward
from moeut.blocks.neighbours import TokenRow
from moeut.blocks.own import Adapters
from moeut.blocks.routing import RoutingContext
from moeut.options import OptionError
from moeut.recurrence.schedule import Place
from moeut.recurrence.state import State
from moeut.sizing import cache_bytes_per_token

D, HIDDEN, T = 4, 5, 6
PLAIN = RoutingContext()


def make_module(options):
    torch.manual_seed(0)
    module = options.within(dropout=0.0).build(D).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def make_states():
    return torch.randn(3, T, D, generator=torch.Generator().manual_seed(1)).double()


def convolve(layer, x, width, sides):
    """Torch's own convolution, with the same weights."""
    left = width - 1 if sides == "left" else width // 2
    padded = F.pad(x.mT, (left, width - 1 - left))
    return F.conv1d(padded, layer.weight, layer.bias).mT


@pytest.mark.parametrize("activate_output", [False, True])
@pytest.mark.parametrize(("sides", "width"), [("both", 3), ("left", 3), ("both", 1), ("left", 2)])
def test_convolutional_is_two_convolutions(sides, width, activate_output):
    options = ConvolutionalFeedForward(
        hidden_size=HIDDEN, sides=sides, width=width, activate_output=activate_output
    )
    module, x = make_module(options), make_states()
    hidden = convolve(module.up, x, width, sides).relu()
    wanted = convolve(module.down, hidden, width, sides)
    wanted = wanted.relu() if activate_output else wanted
    assert (module(x, x, PLAIN)[0] - wanted).abs().max() < 1e-13
    few = x[:1, :3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, x, PLAIN)[0], few)


def test_short_convolution_comes_after_the_gate():
    module = make_module(GatedFeedForward(hidden_size=HIDDEN, short_convolution=2))
    x = make_states()
    h = F.silu(x @ module.gate.weight.T) * (x @ module.up.weight.T)
    weight, bias = module.convolution.weight, module.convolution.bias
    before = torch.cat((torch.zeros_like(h[:, :1]), h[:, :-1]), dim=1)
    wanted = F.silu(before * weight[:, 0] + h * weight[:, 1] + bias) @ module.down.weight.T
    assert (module(x, x, PLAIN)[0] - wanted).abs().max() < 1e-13
    few = x[:1, :3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, x, PLAIN)[0], few)


@pytest.mark.parametrize("sides", ["both", "left"])
def test_padding_and_other_documents_are_no_neighbours(sides):
    module = make_module(ConvolutionalFeedForward(hidden_size=HIDDEN, sides=sides))
    x, columns = make_states(), torch.arange(T)
    alone = [module(x[:, part], x[:, part], PLAIN)[0] for part in (slice(0, 4), slice(4, T))]
    real = torch.tensor([[True] * 4 + [False] * 2]).expand(3, T)
    padded = module(x, x, RoutingContext(row=TokenRow(columns, real)))[0]
    assert (padded[:, :4] - alone[0]).abs().max() < 1e-13
    numbers = torch.tensor([[0] * 4 + [1] * 2]).expand(3, T)
    parted = module(x, x, RoutingContext(row=TokenRow(columns, None, numbers)))[0]
    assert (parted - torch.cat(alone, dim=1)).abs().max() < 1e-13
    assert (module(x, x, PLAIN)[0] - parted).abs().max() > 0.1  # or it would show nothing


def test_sides_follow_from_the_stack(make_config):
    config = make_config("encoder_decoder", feed_forward="convolutional")
    sides = {name: stack.feed_forward.sides for name, stack in config.stacks.items()}
    assert sides == {"encoder": "both", "decoder": "left"}
    with pytest.raises(OptionError, match="later tokens") as caught:
        make_config("decoder_lm", feed_forward="convolutional_both")
    assert caught.value.option == "feed_forward.sides"
    with pytest.raises(OptionError, match="must be odd"):
        ConvolutionalFeedForward(width=2, sides="both")


@torch.no_grad()
def test_a_cache_keeps_what_the_last_state_is_mapped_from(make_model):
    """The result has neighbours there, states that are read out besides have none."""
    state = State(output="feed_forward")
    model = make_model("decoder_lm", feed_forward="convolutional", state=state).eval()
    tokens = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache()
    steps = [model(tokens[:, i : i + 2], cache=cache).logits for i in (0, 2, 4)]
    assert (torch.cat(steps, dim=1) - model(tokens).logits).abs().max() < 1e-12
    assert len(model(tokens, read_repeats=[0]).repeat_logits) == 1
    with pytest.raises(ValueError, match="neighbours of the result alone"):
        model(tokens, cache=model.new_cache(), read_repeats=[0])
    plain = make_model("decoder_lm", feed_forward="convolutional").config
    more = cache_bytes_per_token(model.config) - cache_bytes_per_token(plain)
    assert more == 4 * (model.config.d_model + model.config.feed_forward.hidden_size)


def test_an_adapter_changes_a_convolution_of_its_repeat():
    """It is a low-rank change of the weights of all tokens that are read."""
    module, x = (
        make_module(ConvolutionalFeedForward(hidden_size=HIDDEN, sides="both")),
        make_states(),
    )
    plain = copy.deepcopy(module)
    module.adapt(Adapters(rank=2, scaling=0.5), ("up", "down"), 2)
    module.double()
    for parameter in module.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    place = Place(0, 0, 1, 2, is_first=True, is_last=True)
    found = module(x, x, RoutingContext(place=place))[0]
    assert (found - plain(x, x, PLAIN)[0]).abs().max() > 0.1
    with torch.no_grad():
        for name, adapter in module.adapters.items():
            weight = getattr(plain, name).weight
            weight += 0.5 * (adapter.up[1] @ adapter.down[1]).view_as(weight)
    assert (found - plain(x, x, PLAIN)[0]).abs().max() < 1e-12
