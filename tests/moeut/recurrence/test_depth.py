"""How deep a pass is, what gradients flow through, and that shared layers are shared."""

import dataclasses

import pytest
import torch
from recurrent_cases import batch, loss_of

import moeut
from moeut.blocks.own import Own, of_one_repeat
from moeut.recurrence.conditioning import NoConditioning
from moeut.recurrence.controller import NoHalting
from moeut.recurrence.halting import AdaptiveComputationTime
from moeut.recurrence.inputs import Inputs
from moeut.recurrence.schedule import Depth
from moeut.recurrence.state import State


def _gradients(model, loss):
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, parameters.values(), allow_unused=True)
    return dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("controller", ["input_linear", "zero_add", "act_noise_linear"])
@pytest.mark.parametrize("blocks", ["dense", "experts"])
def test_gradients_flow_through_the_last_repeats_alone(make_recurrent, controller, blocks):
    """As through a pass that begins from the detached state that the first repeats ended with."""
    model = make_recurrent("decoder_lm", controller, blocks, coda=0).eval()
    stack = model.decoder
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).double()
    weight = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2)).double()
    out = stack(x, Inputs(num_repeats=5, backprop_repeats=2))
    full = stack(x, Inputs(num_repeats=5, read_repeats=[]))
    assert torch.equal(out.states, full.states)
    truncated = _gradients(stack, (out.states * weight).sum())
    whole = _gradients(stack, (full.states * weight).sum())
    name = "layers.1.attention.query.weight"
    assert (truncated[name] - whole[name]).abs().max() > 1e-6
    if "act" in controller:
        return  # what was spent before is part of the run, not of the state
    state = full.repeats[2].detach()
    last = stack(x, Inputs(num_repeats=2, initial_state=state))
    assert (last.states - full.states).abs().max() < 1e-12
    wanted = _gradients(stack, (last.states * weight).sum())
    for name, gradient in wanted.items():
        assert truncated[name] is not None, name
        assert torch.allclose(truncated[name], gradient, rtol=0, atol=1e-11), name


def test_as_many_as_there_are_is_all_of_them(make_recurrent):
    model = make_recurrent("decoder_lm", "zero_add").train()
    arguments, masks = batch(model)
    wanted = _gradients(model, loss_of(model, model(*arguments, **masks)))
    for number in (4, 9):
        output = model(*arguments, **masks, backprop_repeats=number)
        for name, gradient in _gradients(model, loss_of(model, output)).items():
            assert torch.equal(gradient, wanted[name]), name


def test_gradients_are_there_where_all_tokens_halt_before_them(make_recurrent):
    """They are 0 and not missing, or an optimiser would skip what ranks that go on do step."""
    halting = AdaptiveComputationTime(threshold=0.5, initial_bias=30.0)
    model = make_recurrent("decoder_lm", "act_noise_linear", halting=halting).train()
    arguments, masks = batch(model)
    output = model(*arguments, **masks, backprop_repeats=1, trace=True)
    assert len(output.repeats["decoder"]) == 4
    for name, gradient in _gradients(model, loss_of(model, output)).items():
        assert gradient is not None, name


def test_truncation_under_autocast_trains_every_weight(make_recurrent):
    """PyTorch 2.10 uses casts made without gradient again; the stack has to drop them."""
    model = make_recurrent("decoder_lm", "input_linear", "dense").float().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*batch(model)[0], backprop_repeats=1)
    found = _gradients(model, output.logits.float().logsumexp(-1).sum())
    missing = [name for name, gradient in found.items() if gradient is None]
    assert not missing


@pytest.mark.parametrize("number", [-1, 1.5, True])
def test_backprop_repeats_are_whole_numbers(make_recurrent, number):
    model = make_recurrent("decoder_lm", "zero_add")
    with pytest.raises(ValueError, match=f"backprop_repeats={number}: must be a whole number"):
        model(*batch(model)[0], backprop_repeats=number)


def test_truncation_that_would_train_no_embedding_is_refused(make_model):
    for options, reason in (
        ({"repeats": 3}, "needs state.injection"),
        ({"repeats": 3, "order": "sequence"}, "depth.order=sequence"),
        ({"repeats": 1, "group": 4}, "no layer is repeated"),
    ):
        model = make_model("decoder_lm", **options)
        with pytest.raises(ValueError, match=f"backprop_repeats=1: {reason}"):
            model(*batch(model)[0], backprop_repeats=1)


@pytest.mark.parametrize("order", ["cycle", "sequence"])
@torch.no_grad()
def test_num_repeats_changes_the_group_alone(make_model, order):
    model = make_model(prelude=1, group=2, repeats=2, coda=2, order=order).eval()
    applied = []
    for number, layer in enumerate(model.decoder.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: applied.append(number))
    output = model(*batch(model)[0], num_repeats=3, trace=True)
    group = [1, 2] * 3 if order == "cycle" else [1, 1, 1, 2, 2, 2]
    assert applied == [0, *group, 3, 4]
    assert len(output.hidden["decoder"]) == len(output.trace["decoder"]) + 1 == 10
    ends = output.hidden["decoder"][3:8:2] if order == "cycle" else []
    assert len(output.repeats["decoder"]) == len(ends)
    for state, wanted in zip(output.repeats["decoder"], ends, strict=True):
        assert torch.equal(state, wanted)


# --- shared means shared ----------------------------------------------------------------

LOOPS = [name for name, tree in moeut.ARCHITECTURES.items() if "recursion" not in tree()]
"""Architectures whose group is repeated as it is."""


def _shared_config(name):
    """Return a small model of an architecture, its group repeated three times."""
    small = {"attention": {"num_heads": 2}, "feed_forward": {}}
    tree = moeut.ARCHITECTURES[name]()
    if tree["attention"]["kind"] == "switch_head":
        small["attention"]["num_experts"] = 3
    if tree["feed_forward"]["kind"].endswith("_moe"):
        small["feed_forward"] = {"num_experts": 5, "expert_size": 4, "top_k": 2}
    else:
        small["feed_forward"] = {"hidden_size": 8}
    if "input_position" in tree:
        small["input_position"] = {"digits": [3, 4]}
    return moeut.architecture(
        name,
        form="decoder_lm",
        vocabulary_size=11,
        d_model=16,
        depth={"prelude": 1, "group": 2, "repeats": 3, "coda": 1},
        **small,
    )


@pytest.mark.parametrize("name", LOOPS)
def test_shared_layers_are_one_set_of_parameters(name):
    config = _shared_config(name)
    deeper = dataclasses.replace(config, depth=dataclasses.replace(config.depth, repeats=7))
    built = [moeut.build(one) for one in (config, deeper)]
    private = [sum(p.numel() for p in of_one_repeat(one.decoder.layers)) for one in built]
    deciding = [sum(p.numel() for p in one.decoder.controllers.parameters()) for one in built]
    assert private[1] * 3 == private[0] * 7
    more = private[1] + deciding[1] - private[0] - deciding[0]
    assert moeut.count_parameters(deeper) == moeut.count_parameters(config) + more
    plain = {"halting": NoHalting(), "conditioning": NoConditioning(), "state": State()}
    plain |= {"own": Own()}
    once = dataclasses.replace(config, depth=Depth(group=4, repeats=1), **plain)
    extra = moeut.count_parameters(config) - moeut.count_parameters(once)
    model = built[0]
    stack = model.decoder
    besides = [stack.controllers, *filter(None, (stack.output, stack.state_norm))]
    assert extra == private[0] + sum(p.numel() for part in besides for p in part.parameters())
    parameters = [id(p) for p in model.parameters()]
    assert len(set(parameters)) == len(parameters)
    assert [id(layer) for layer in model.decoder.layers] == list(
        dict.fromkeys(id(layer) for layer in model.decoder.layers)
    )


@pytest.mark.parametrize("name", LOOPS)
def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_repeats(name):
    """Copies of the layer, one for each repeat, have gradients that add up to the shared one's."""
    config = _shared_config(name)
    torch.manual_seed(0)
    model = moeut.build(config).double().eval()
    if model.decoder.controllers:
        pytest.skip("a controller decides at each repeat, which distinct layers do not have")
    if not config.own.is_nothing:
        pytest.skip("tests of what each repeat has of its own compare them with distinct layers")
    copies = dataclasses.replace(config, depth=Depth(group=8, repeats=1))
    unrolled = moeut.build(copies).double().eval()
    layers = model.decoder.schedule()
    weights = model.state_dict()
    own = {
        f"decoder.layers.{place}.{rest}": weights[f"decoder.layers.{layer}.{rest}"]
        for place, layer in enumerate(layers)
        for rest in (n.removeprefix("decoder.layers.0.") for n in weights)
        if f"decoder.layers.{layer}.{rest}" in weights
    }
    others = {n: t for n, t in weights.items() if not n.startswith("decoder.layers.")}
    unrolled.load_state_dict(own | others)
    tokens = torch.arange(12).view(2, 6) % 11
    results = []
    for one in (model, unrolled):
        logits = one(tokens).logits
        results.append((logits, _gradients(one, logits.log_softmax(-1)[..., 0].sum())))
    (logits, found), (wanted_logits, parts) = results
    assert (logits - wanted_logits).abs().max() < 1e-12
    for name_of, gradient in found.items():
        rest = name_of.removeprefix("decoder.layers.")
        if rest == name_of:
            assert torch.allclose(gradient, parts[name_of], rtol=0, atol=1e-11), name_of
            continue
        layer, _, rest = rest.partition(".")
        places = [place for place, index in enumerate(layers) if index == int(layer)]
        assert len(places) == (3 if int(layer) in (1, 2) else 1)
        total = sum(parts[f"decoder.layers.{place}.{rest}"] for place in places)
        assert torch.allclose(gradient, total, rtol=0, atol=1e-10), name_of
        assert gradient.abs().sum() > 0, name_of
