"""Mixture-of-Recursions: who takes part, what becomes of a token, what routers learn."""

import itertools

import pytest
import torch
from recurrent_cases import BLOCKS, FORMS, batch, loss_of, real_logits

import moeut
from moeut.options import OptionError
from moeut.recurrence.mixture import ExpertChoice, TokenChoice

REPEATS = 3
KINDS = {
    "expert": ExpertChoice(sampling_loss=0.3, z_loss=0.1, alpha=0.8),
    "threshold": ExpertChoice(sampling="router", evaluate="threshold", gate="tanh", alpha=0.7),
    "token": TokenChoice(z_loss=0.1, balancing_loss=0.2),
    "bias": TokenChoice(gate="sigmoid", balancing="bias", bias_rate=0.05),
}


def _model(make_model, kind="expert", form="decoder_lm", **options):
    sizes = {"prelude": 1, "coda": 1, "repeats": REPEATS}
    model = make_model(form, halting=KINDS[kind], **sizes | BLOCKS["experts"] | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "halting" in name and "bias" not in name:
                parameter.mul_(5.0)
    return model


@pytest.mark.parametrize("shared", ["none", "first", "update"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_company_change_nothing(make_model, kind, form, shared):
    """Logits, and each row's share in the losses; no row begins with equal tokens, which tie."""
    model = _model(make_model, kind, form, shared_keys=shared).train()
    arguments, masks = batch(model, seed=4)
    together = model(*arguments, **masks)
    logits = real_logits(model, together)
    wider = model(*batch(model, width=9, seed=4)[0], **batch(model, width=9, seed=4)[1])
    assert (logits - real_logits(model, wider, width=9)).abs().max() < 1e-11
    assert (together.auxiliary_loss - wider.auxiliary_loss).abs() < 1e-11
    alone, losses = [], []
    for row in range(3):
        arguments, masks = batch(model, slice(row, row + 1), seed=4)
        output = model(*arguments, **masks)
        alone.append(real_logits(model, output, slice(row, row + 1)))
        losses.append(output.auxiliary_loss)
    assert (logits - torch.cat(alone)).abs().max() < 1e-11
    assert (torch.stack(losses).mean() - together.auxiliary_loss).abs() < 1e-11
    taken = together.decisions[list(together.decisions)[-1]]["halting.repeats"]
    assert taken.unique().numel() > 1


@pytest.mark.parametrize("shared", ["none", "first", "update"])
@pytest.mark.parametrize("position", ["rotary", "relative"])
@pytest.mark.parametrize("kind", ["threshold", "token"])
def test_a_cache_equals_the_whole_pass(make_model, kind, position, shared):
    model = _model(make_model, kind, shared_keys=shared, position=position).eval()
    tokens = batch(model, width=12)[0][0]
    whole = model(tokens)
    assert whole.decisions["decoder"]["halting.repeats"].unique().numel() > 1
    cache, steps = model.new_cache(), []
    for start, end in itertools.pairwise([0, 5, 6, 7, 8, 12]):
        steps.append(model(tokens[:, start:end], cache=cache).logits)
    assert (torch.cat(steps, 1) - whole.logits).abs().max() < 1e-11


@pytest.mark.parametrize("shared", ["none", "first", "update"])
@pytest.mark.parametrize("kind", ["threshold", "token"])
def test_prompts_of_different_length_go_on_where_no_token_takes_part(make_model, kind, shared):
    model = _model(make_model, kind, shared_keys=shared).eval()
    tokens, lengths = batch(model, width=12)[0][0], (3, 1, 2)
    cache, repeats = model.new_cache(), []
    model(tokens[:, :3], padding_mask=torch.arange(3) < torch.tensor(lengths)[:, None], cache=cache)
    for column in range(3, 12):
        output = model(tokens[:, column : column + 1], cache=cache)
        repeats.append(output.decisions["decoder"]["halting.repeats"].max())
    assert min(repeats) < REPEATS  # a step of which a repeat has no token
    for row, length in enumerate(lengths):
        alone = torch.cat((tokens[row, :length], tokens[row, 3:]))[None]
        assert (model(alone).logits[0, -1] - output.logits[row, 0]).abs().max() < 1e-11


def test_top_k_refuses_a_cache_and_a_threshold_looks_at_nothing_later(make_model):
    with pytest.raises(ValueError, match=r"halting: .* halting.evaluate=threshold decides"):
        _model(make_model, "expert").new_cache()
    for kind, differs in (("expert", True), ("threshold", False), ("token", False)):
        model = _model(make_model, kind).eval()
        tokens = batch(model, width=12)[0][0]
        first = model(tokens).logits[:, :6]
        assert ((first - model(tokens[:, :6]).logits).abs().max() > 1e-6) == differs, kind


@pytest.mark.parametrize("row", range(3))
def test_expert_choice_is_its_formula(make_model, row):
    """With layers applied by hand to the tokens that are chosen."""
    model = _model(make_model, "expert", group=1, prelude=0, coda=0).eval()
    stack, tokens = model.decoder, batch(model)[0][0][row : row + 1]
    controller = stack.controllers["halting"]
    plain = moeut.build(_without(model.config)).double().eval()
    x = model.embedding(tokens)
    chosen = torch.arange(6)
    for repeat, part in enumerate((1.0, 2 / 3, 1 / 3)):
        logits = x[0, chosen] @ controller.routers[repeat][0]
        gates = 0.8 * logits.sigmoid()
        best = gates.topk(max(1, int(part * 6))).indices.sort().values
        chosen, gates = chosen[best], gates[best]
        moved = _applied(plain, model, x[:, chosen], chosen)
        x = x.clone()
        x[0, chosen] = x[0, chosen] + gates[:, None] * moved[0]
    wanted = model.head(stack.final_norm(x), model.embedding.weight)
    assert (model(tokens).logits - wanted).abs().max() < 1e-11


def test_token_choice_is_its_formula(make_model):
    model = _model(make_model, "token", group=1, prelude=0, coda=0).eval()
    stack, tokens = model.decoder, batch(model)[0][0][:1]
    plain = moeut.build(_without(model.config)).double().eval()
    begun = x = model.embedding(tokens)
    p = (x @ stack.controllers["halting"].weight.T).softmax(-1)[0]
    depth = p.argmax(-1)
    result = x.clone()
    for repeat in range(REPEATS):
        chosen = (depth >= repeat).nonzero().squeeze(-1)
        if not len(chosen):
            break
        moved = _applied(plain, model, x[:, chosen], chosen)
        x = x.clone()
        x[0, chosen] = moved[0]
        ends = depth == repeat
        result[0, ends] = begun[0, ends] + p[ends, repeat, None] * x[0, ends]
    wanted = model.head(stack.final_norm(result), model.embedding.weight)
    assert (model(tokens).logits - wanted).abs().max() < 1e-11


def _without(config):
    import dataclasses

    from moeut.recurrence.controller import NoHalting
    from moeut.recurrence.schedule import Depth

    depth = Depth(group=1, repeats=1)
    return dataclasses.replace(config, halting=NoHalting(), depth=depth, final_norm=False)


def _applied(plain, model, x, columns):
    """Return what the layer makes of tokens x (1, N, D) of these columns, which see one another."""
    stack = plain.decoder
    stack.layers.load_state_dict(model.decoder.layers.state_dict())
    length = int(columns[-1]) + 1
    whole = torch.zeros(1, length, x.shape[-1], dtype=x.dtype)
    whole[:, columns] = x
    numbers = torch.arange(length)[None] * 0
    from moeut.recurrence.cache import whole_sequence
    from moeut.recurrence.controller import Step
    from moeut.recurrence.inputs import Inputs
    from moeut.recurrence.passing import Passing

    places = stack.options.depth.places()
    passing = Passing(
        *(stack.options, stack.layers, whole, Inputs(), whole_sequence(length, x.device)),
        causal=True, places=places, balance_weights={}, value_embeddings=stack.value_embeddings,
        training=False,
    )  # fmt: skip
    active = numbers.bool()
    active[:, columns] = True
    passing._pack = lambda *_: None
    step = Step(whole, active=active, is_alone=True)
    return passing.apply(places[0], step)[:, columns]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_is_exact_and_routers_learn(make_model, kind):
    model = _model(make_model, kind).train()
    arguments, masks = batch(model)
    gradients = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        loss_of(model, model(*arguments, **masks)).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
        if "halting" in name:
            assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("shared", ["none", "first", "update"])
@pytest.mark.parametrize("kind", ["expert", "token"])
def test_gradients_are_exact(make_model, kind, shared):
    sizes = {"group": 1, "prelude": 0, "coda": 0, "shared_keys": shared} | BLOCKS["dense"]
    stack = _model(make_model, kind, **sizes).train().decoder
    x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(3)).double()
    controller = stack.controllers["halting"]
    router = controller.routers[1] if kind == "expert" else controller.weight

    def run(x, *_):
        output = stack(x)
        return output.states, output.auxiliary_loss

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), router), atol=1e-7)


@pytest.mark.parametrize("kind", ["expert", "token"])
def test_compiled_as_it_is(make_model, kind):
    """Top-k over whole rows is packed in a compiled graph, too; else all tokens are computed."""
    model = _model(make_model, kind, group=1, prelude=0, coda=0, **BLOCKS["dense"]).eval()
    tokens = batch(model)[0][0]
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(tokens).logits
        assert (compiled - model(tokens).logits).abs().max() < 1e-12


def test_the_bias_follows_the_shares(make_model):
    model = _model(make_model, "bias").train()
    controller = model.decoder.controllers["halting"]
    torch.nn.init.zeros_(controller.bias)
    tokens = batch(model)[0][0]
    total = torch.zeros(REPEATS, dtype=torch.int64)
    for part in (tokens[:2], tokens[2:]):
        depths = model(part).decisions["decoder"]["halting.repeats"] - 1
        total += torch.bincount(depths.flatten(), minlength=REPEATS)
    assert torch.equal(controller.counted(), total)
    controller.after_update(controller.counted())
    wanted = 0.05 * (1 / REPEATS - total / total.sum()).sign()
    assert torch.allclose(controller.bias, wanted.double())
    assert int(controller.counted().sum()) == 0
    controller.is_counting = False
    model(tokens)
    assert int(controller.counted().sum()) == 0
    with torch.no_grad():
        controller.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    output = model.eval()(tokens)
    assert (output.decisions["decoder"]["halting.repeats"] == REPEATS).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_repeat_that_no_token_takes_part_in_changes_nothing(make_model, form, monkeypatch):
    model = _model(make_model, "threshold", form).eval()
    arguments, masks = batch(model)
    some = model(*arguments, **masks).logits
    below = "moeut.recurrence.mixture.router_logits"
    monkeypatch.setattr(below, lambda x, weight: torch.full_like(x[..., :1], -1.0))
    none = model(*arguments, **masks).logits
    assert torch.equal(none, model(*arguments, **masks, num_repeats=1).logits)
    assert not torch.equal(none, some)


def test_other_numbers_of_repeats(make_model):
    for kind in KINDS:
        model = _model(make_model, kind).eval()
        tokens = batch(model)[0][0]
        for number in (1, 2, 5):
            taken = model(tokens, num_repeats=number).decisions["decoder"]["halting.repeats"]
            assert taken.max() <= min(number, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": (0.5, 0.7)}, r"capacity=\[0.5, 0.7\]: must be parts above 0"),
        ({"sampling": "none", "evaluate": "threshold"}, "evaluate='threshold': nothing teaches it"),
        ({"temperature": 0.0}, "temperature=0.0: must be a finite number above 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        ExpertChoice(**options)


def test_shared_keys_are_of_repeats(make_config):
    with pytest.raises(OptionError, match=r"depth.repeats=1: shared_keys needs at least 2"):
        make_config(shared_keys="first", repeats=1)


def test_later_repeats_read_the_keys_of_the_first(make_model):
    """A layer in whose later repeats keys and values are held changes nothing but queries."""
    model = make_model(shared_keys="first", order="sequence", repeats=2, group=2).eval()
    tokens = batch(model)[0][0]
    before = model(tokens).logits
    other = make_model(order="sequence", repeats=2, group=2).eval()
    other.load_state_dict(model.state_dict())
    assert (other(tokens).logits - before).abs().max() > 1e-4
    sizes = [moeut.macs_per_token(m.config, sequence_length=8) for m in (model, other)]
    assert sizes[0] < sizes[1]


def test_work_follows_the_capacity(make_config):
    """Of a layer that 1, ½ and ½ of the tokens go through, two thirds of the work, or less."""
    sizes = {"group": 1, "repeats": 3} | BLOCKS["dense"]
    plain = make_config(**sizes)
    halved = make_config(halting=ExpertChoice(capacity=(1.0, 0.5, 0.5)), **sizes)
    one, three = (
        moeut.macs_per_token(config, sequence_length=8)
        for config in (make_config(**sizes | {"repeats": 1}), plain)
    )
    layer = (three - one) / 2
    routers = 3 * plain.d_model
    # Half of the tokens see half of the keys, in two repeats.
    seen = plain.attention.attending_macs(8) - plain.attention.attending_macs(4)
    wanted = three - layer + routers - seen
    assert moeut.macs_per_token(halved, sequence_length=8) == pytest.approx(wanted, abs=2)
    whole = moeut.macs_per_token(halved, sequence_length=8, everyone=True)
    assert whole == three + routers
