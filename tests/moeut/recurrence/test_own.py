"""What each repeat has of its own: as distinct layers that share the rest."""

import dataclasses

import pytest
import torch
from recurrent_cases import BLOCKS, FORMS, batch, loss_of, real_logits

import moeut
from moeut.blocks.own import Adapters, Own, of_one_repeat
from moeut.blocks.updates import CopyGate
from moeut.options import OptionError
from moeut.recurrence.schedule import Depth
from moeut.sizing import count_parameters, macs_per_token

REPEATS = 3
LOW_RANK = Adapters(rank=2, scaling=1.7)
EVERYTHING = Own(norms=True, routers=True, attention=True)
CASES = {
    "norms": (Own(norms=True), {}),
    "routers": (Own(routers=True), {}),
    "attention": (Own(attention=True), {}),
    "attention_rotary_relative": (Own(attention=True), {"position": "learned_scale"}),
    "everything": (EVERYTHING, {}),
    "adapters": (Own(adapters=LOW_RANK), {}),
    "gates": (Own(routers=True), {"attention": "gates"}),
    "update": (Own(update=True), {"update": CopyGate(), "norm": "pre"}),
    "dense": (
        Own(norms=True, adapters=Adapters(rank=2, value=True, output=True, feed_forward=True)),
        BLOCKS["dense"] | {"norm": "pre"},
    ),
}


def _model(make_model, own, form="decoder_lm", **options):
    sizes = {"group": 2, "repeats": REPEATS, "prelude": 1, "coda": 1}
    model = make_model(form, own=own, **sizes | options)
    with torch.no_grad():  # B starts as 0
        for name, parameter in model.named_parameters():
            if ".up." in name and "adapters" in name:
                parameter.normal_()
            if "encoding" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _places(stack):
    return stack.options.depth.places()


def _unrolled(model):
    """Return a model of distinct layers, and the parameters that each of its own comes from."""
    places = _places(model.decoder)
    config = dataclasses.replace(
        model.config, depth=Depth(group=len(places), repeats=1), own=Own(), encoder_depth=None
    )
    distinct = moeut.build(config).double().train(model.training)
    weights, sources = dict(model.named_parameters()), {}
    for name, _ in distinct.named_parameters():
        if ".layers." not in name:
            sources[name] = [name]
            continue
        index, _, rest = name.removeprefix("decoder.layers.").partition(".")
        place = places[int(index)]
        sources[name] = _own_name(f"decoder.layers.{place.layer}.", rest, place.repeat, weights)
    with torch.no_grad():
        for name, parameter in distinct.named_parameters():
            whole = weights[sources[name][0]].clone()
            if len(sources[name]) > 1:
                down, up = (weights[n] for n in sources[name][1:])
                whole += model.config.own.adapters.scaling * up @ down
            parameter.copy_(whole)
    return distinct, sources


def _own_name(prefix, rest, repeat, weights):
    """Return the name of the parameter, and of the two of its adapter where it has one."""
    words = rest.split(".")
    candidates = [".".join([*words[:i], str(repeat), *words[i:]]) for i in range(len(words) + 1)]
    # Experts of values and outputs are those of the first repeat.
    candidates += [rest, ".".join([words[0], "0", *words[1:]])]
    names = [prefix + next(c for c in candidates if prefix + c in weights)]
    adapter = f"{prefix}{'.'.join(words[:-2])}.adapters.{words[-2]}" if len(words) > 2 else ""
    if f"{adapter}.down.{repeat}" in weights and words[-1] == "weight":
        names += [f"{adapter}.{half}.{repeat}" for half in ("down", "up")]
    return names


@pytest.mark.parametrize("order", ["cycle", "sequence"])
@pytest.mark.parametrize("case", CASES)
def test_they_are_distinct_layers_that_share_the_rest(make_model, case, order):
    """In logits, in balance losses and in gradients, which add up over what is shared."""
    own, options = CASES[case]
    model = _model(make_model, own, order=order, **options).train()
    distinct, sources = _unrolled(model)
    arguments, masks = batch(model)
    outputs = [one(*arguments, **masks) for one in (model, distinct)]
    assert (real_logits(model, outputs[0]) - real_logits(model, outputs[1])).abs().max() < 1e-11
    if own.routers or own.attention:  # else the loss is one of the mean over repeats
        parts = [_routers_are_distinct(model, own, block) for block in ("attention", "ff")]
        if all(parts):
            losses = [output.auxiliary_loss.item() for output in outputs]
            assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    for one, output in zip((model, distinct), outputs, strict=True):
        loss = loss_of(one, output) - output.auxiliary_loss
        loss.backward()
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for name, parameter in distinct.named_parameters():
        first, *adapter = sources[name]
        gradient = parameter.grad
        wanted[first] += gradient
        if adapter:
            down, up = (dict(model.named_parameters())[n].detach() for n in adapter)
            wanted[adapter[0]] += own.adapters.scaling * up.T @ gradient
            wanted[adapter[1]] += own.adapters.scaling * gradient @ down.T
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name], rtol=0, atol=1e-10), name


@pytest.mark.parametrize("own", [Own(attention=True), EVERYTHING])
def test_experts_are_those_of_all_repeats(make_model, own):
    model = _model(make_model, own, prelude=0, coda=0, group=1)
    experts = [n for n, p in model.named_parameters() if p.dim() == 3]
    assert len(experts) == 2 + 2  # of values and outputs, and both halves of the feed-forward
    attentions = model.decoder.layers[0].attention
    for one in attentions:
        pairs = zip(one.expert_weights(), attentions[0].expert_weights(), strict=True)
        assert all(weight is shared for weight, shared in pairs)
    assert attentions[1].value_router is not attentions[0].value_router


def test_alpha_is_divided_by_the_rank(make_model):
    adapters = Adapters(rank=2, alpha=3.0)
    plain, scaled = (
        _model(make_model, Own(adapters=one)).eval()
        for one in (adapters, Adapters(rank=2, scaling=1.5))
    )
    tokens = batch(plain)[0][0]
    assert torch.equal(plain(tokens).logits, scaled(tokens).logits)


def _routers_are_distinct(model, own, block):
    if block == "attention":
        return own.routers or own.attention or model.config.attention.kind == "dense"
    return own.routers or model.config.feed_forward.kind == "dense"


@pytest.mark.parametrize("form", FORMS)
def test_padding_and_company_change_nothing(make_model, form):
    own = Own(norms=True, routers=True, adapters=LOW_RANK, encoding=True)
    model = _model(make_model, own, form).eval()
    arguments, masks = batch(model)
    together = real_logits(model, model(*arguments, **masks))
    wider, wider_masks = batch(model, width=9)
    again = real_logits(model, model(*wider, **wider_masks), width=9)
    assert (together - again).abs().max() < 1e-11
    alone = []
    for row in range(3):
        arguments, masks = batch(model, slice(row, row + 1))
        alone.append(real_logits(model, model(*arguments, **masks), slice(row, row + 1)))
    assert (together - torch.cat(alone)).abs().max() < 1e-11


@pytest.mark.parametrize("own", [EVERYTHING, Own(adapters=LOW_RANK, encoding=True)])
@pytest.mark.parametrize("form", ["decoder_lm", "encoder_decoder"])
def test_a_cache_equals_the_whole_pass(make_model, form, own):
    """With cross-attention, each repeat reads its own keys and values of the encoder's output."""
    model = _model(make_model, own, form).eval()
    arguments, _ = batch(model)
    tokens = arguments[-1]
    whole = model(*arguments).logits
    cache = model.new_cache()
    steps = []
    if form == "decoder_lm":
        read = lambda part: model(part, cache=cache).logits  # noqa: E731
    else:
        encoded = model.encode(arguments[0])
        read = lambda part: model.decode(part, encoded, cache=cache).logits  # noqa: E731
    for part in (tokens[:, :3], tokens[:, 3:4], tokens[:, 4:]):
        steps.append(read(part))
    assert (torch.cat(steps, 1) - whole).abs().max() < 1e-11
    chosen = cache.select(torch.tensor([2, 0]))
    assert chosen.lengths() == 6


def test_checkpointing_is_exact(make_model):
    own = Own(norms=True, routers=True, adapters=LOW_RANK, encoding=True)
    model = _model(make_model, own).train()
    arguments, masks = batch(model)
    gradients = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        loss_of(model, model(*arguments, **masks)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_compiled_as_it_is(make_model):
    own = Own(norms=True, routers=True, adapters=LOW_RANK, encoding=True)
    model = _model(make_model, own, group=1, prelude=0, coda=0).eval()
    tokens = batch(model)[0][0]
    with torch.no_grad():
        # Which parameters a repeat reads is decided by what traces; other tests generate code.
        traced = torch.compile(model, fullgraph=True, backend="aot_eager")
        compiled = traced(tokens).logits
        assert (compiled - model(tokens).logits).abs().max() < 1e-12


def test_gradients_are_exact(make_model):
    own = Own(norms=True, adapters=LOW_RANK, encoding=True)
    model = _model(make_model, own, group=1, prelude=0, coda=0, **BLOCKS["dense"]).eval()
    stack = model.decoder
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    chosen = [p for p in stack.parameters() if p in of_one_repeat(stack) and p.numel() < 40]
    assert len(chosen) > REPEATS

    def run(x, *_):
        return stack(x).states

    assert torch.autograd.gradcheck(run, (x, *chosen), atol=1e-7)


@pytest.mark.parametrize("order", ["cycle", "sequence"])
def test_an_encoding_scales_the_state_after_a_recursion(make_model, order):
    """After the group's last layer or, where each layer's repeats stand together, after each."""
    model = _model(make_model, Own(encoding=True), order=order).eval()
    plain = make_model(group=2, repeats=REPEATS, prelude=1, coda=1, order=order).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    tokens = batch(model)[0][0]
    states = model(tokens, trace=True).hidden["decoder"]
    stack = plain.decoder
    for place, before, after in zip(_places(stack), states, states[1:], strict=False):
        context = _context(stack, before)
        x = stack.layers[place.layer](before, context).x
        encoding = model.decoder.layers[place.layer].encoding
        ends = place.repeat is not None and (order == "sequence" or place.is_last)
        assert (encoding is not None) == (
            place.repeat is not None and (place.layer == 2 or order == "sequence")
        )
        if ends:
            x = x * encoding.scale[place.repeat]
        assert (x - after).abs().max() < 1e-12, place


def _context(stack, x):
    from moeut.recurrence.cache import whole_sequence
    from moeut.recurrence.inputs import Inputs
    from moeut.recurrence.passing import Passing

    window = whole_sequence(x.shape[1], x.device)
    sizes = {"causal": True, "places": _places(stack), "balance_weights": {}, "training": False}
    sizes["value_embeddings"] = torch.nn.ModuleDict()
    return Passing(stack.options, stack.layers, x, Inputs(), window, **sizes).context


def test_later_repeats_use_the_last_of_their_own(make_model):
    model = _model(make_model, EVERYTHING).eval()
    tokens = batch(model)[0][0]
    deeper = dataclasses.replace(
        model.config, depth=dataclasses.replace(model.config.depth, repeats=REPEATS + 2)
    )
    copied = moeut.build(deeper).double().eval()
    weights = dict(model.state_dict())
    for name in copied.state_dict():
        if name not in weights:
            weights[name] = weights[name.replace(".3", ".2", 1).replace(".4", ".2", 1)]
    copied.load_state_dict(weights)
    wanted = copied(tokens).logits
    assert (model(tokens, num_repeats=REPEATS + 2).logits - wanted).abs().max() < 1e-12
    assert (model(tokens).logits - wanted).abs().max() > 1e-4


def test_new_adapters_and_factors_change_nothing(make_config):
    torch.manual_seed(0)
    config = make_config(repeats=REPEATS, own=Own(adapters=LOW_RANK, encoding=True))
    model = moeut.build(config).double().eval()
    plain = moeut.build(dataclasses.replace(config, own=Own())).double().eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    tokens = batch(model)[0][0]
    assert (model(tokens).logits - plain(tokens).logits).abs().max() < 1e-13


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_work_are_counted(make_config, case):
    own, options = CASES[case]
    sizes = {"group": 2, "prelude": 1, "coda": 1} | options
    once, more = (
        make_config(repeats=repeats, own=own, **sizes) for repeats in (REPEATS, REPEATS + 1)
    )
    model = moeut.build(once)
    private = sum(p.numel() for p in of_one_repeat(model))
    if own.attention and once.attention.kind == "switch_head":  # experts are of all repeats
        experts = {w for layer in model.decoder.layers[1:3] for w in layer.expert_weights()[:2]}
        private -= sum(weight.numel() for weight in experts)
    assert private > 0
    assert count_parameters(more) - count_parameters(once) == private // REPEATS
    plain = dataclasses.replace(once, own=Own())
    extra = macs_per_token(once, sequence_length=8) - macs_per_token(plain, sequence_length=8)
    adapters = sum(p.numel() for name, p in model.named_parameters() if "adapters" in name)
    assert extra == adapters  # one multiply-accumulate for each parameter of each repeat


def test_a_saved_model_comes_back(make_model, tmp_path):
    own = Own(norms=True, attention=True, routers=True, encoding=True)
    model = _model(make_model, own).eval()
    model.save(tmp_path)
    again = moeut.load(tmp_path)
    assert again.config == model.config
    tokens = batch(model)[0][0]
    assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"own": Own(norms=True), "repeats": 1}, r"depth.repeats=1: own needs at least 2"),
        ({"own": Own(update=True)}, r"own.update=True: has no effect with update.kind='residual'"),
        (
            {"own": Own(routers=True)} | BLOCKS["dense"],
            r"own.routers=True: has no effect with attention.kind='dense' and",
        ),
        (
            {"own": Own(adapters=Adapters(rank=1, value=True))},
            r"own.adapters.value=True: attention.kind='switch_head' has no dense projection",
        ),
        (
            {"own": Own(adapters=Adapters(rank=1, feed_forward=True))},
            r"own.adapters.feed_forward=True: feed_forward.kind='sigma_moe' has no dense layer",
        ),
    ],
)
def test_what_a_model_cannot_have_is_refused(make_config, options, message):
    with pytest.raises(OptionError, match=message):
        make_config(**options)


def test_options_are_checked():
    with pytest.raises(OptionError, match="attention=True: has no effect on projections"):
        Own(attention=True, adapters=Adapters(rank=1))
    with pytest.raises(OptionError, match="rank=1: changes nothing"):
        Adapters(rank=1, query=False, key=False)
