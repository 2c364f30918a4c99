"""What holds for every controller, on every form, with dense and with expert blocks."""

import dataclasses
import itertools

import pytest
import torch
from recurrent_cases import (
    BLOCKS,
    CONTROLLERS,
    FORMS,
    REPEATS,
    batch,
    loss_of,
    real_logits,
)

import moeut
from moeut.recurrence.controller import HALTING, Controller, ControllerOptions, Run

TABLE = list(itertools.product(FORMS, CONTROLLERS, BLOCKS))
every = pytest.mark.parametrize(("form", "controller", "blocks"), TABLE)


def run(model, **options):
    arguments, masks = batch(model)
    return model(*arguments, **masks, **options)


def gradients(model, **options):
    model.zero_grad()
    torch.manual_seed(5)
    output = run(model, **options)
    loss_of(model, output).backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("form", FORMS)
def test_saved_and_loaded_bit_for_bit(make_recurrent, tmp_path, form, controller):
    model = make_recurrent(form, controller).float().eval()
    model.save(tmp_path)
    loaded = moeut.load(tmp_path)
    assert loaded.config == model.config
    assert any("controllers" in name for name in loaded.state_dict()) == (controller != "zero_add")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (run(loaded).logits - run(model).logits).abs().max() < 1e-5


@every
def test_every_parameter_is_initialised_counted_and_trained(
    make_recurrent, form, controller, blocks
):
    model = make_recurrent(form, controller, blocks).train()
    output, found = gradients(model)
    assert output.auxiliary_loss.isfinite()
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in found.values())
    assert moeut.count_parameters(model.config) == sum(p.numel() for p in model.parameters())


@every
def test_activation_checkpointing_changes_no_bit(make_recurrent, form, controller, blocks):
    model = make_recurrent(form, controller, blocks, dropout=0.2).train()
    plain, wanted = gradients(model)
    model.activation_checkpointing = True
    output, found = gradients(model)
    assert torch.equal(output.logits, plain.logits)
    assert torch.equal(output.auxiliary_loss, plain.auxiliary_loss)
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


@every
def test_padding_and_the_rest_of_the_batch_change_nothing(make_recurrent, form, controller, blocks):
    model = make_recurrent(form, controller, blocks)
    # Training draws noise of its own for each row, so noise is compared in evaluation.
    model.train("noise" not in controller)
    outputs, losses = {}, {}
    for width in (6, 11):
        arguments, masks = batch(model, width=width)
        model.zero_grad()
        output = model(*arguments, **masks)
        losses[width] = loss_of(model, output, width=width)
        losses[width].backward()
        outputs[width] = real_logits(model, output, width=width)
        found = {name: p.grad.clone() for name, p in model.named_parameters()}
        if width == 6:
            wanted = found
    assert (outputs[11] - outputs[6]).abs().max() < 1e-11
    assert losses[11].item() == pytest.approx(losses[6].item(), abs=1e-10)
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=1e-9), name

    auxiliary, logits = 0.0, []
    for row in range(3):
        rows = slice(row, row + 1)
        arguments, masks = batch(model, rows)
        alone = model(*arguments, **masks)
        logits.append(real_logits(model, alone, rows))
        auxiliary = auxiliary + alone.auxiliary_loss / 3
    assert (torch.cat(logits) - outputs[6]).abs().max() < 1e-11
    whole = losses[6] - outputs[6].log_softmax(-1)[..., 0].sum()
    assert auxiliary.item() == pytest.approx(whole.item(), abs=1e-11)


@every
@torch.no_grad()
def test_depth_changes_at_evaluation(make_recurrent, form, controller, blocks):
    model = make_recurrent(form, controller, blocks).eval()
    depth = dataclasses.replace(model.config.depth, repeats=REPEATS + 3)
    deeper = moeut.build(dataclasses.replace(model.config, depth=depth)).double().eval()
    deeper.load_state_dict(model.state_dict())
    assert torch.equal(run(model, num_repeats=REPEATS + 3).logits, run(deeper).logits)
    assert (run(model, num_repeats=1).logits - run(model).logits).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("form", "controller", "blocks"), [row for row in TABLE if row[0] != "encoder_classifier"]
)
@torch.no_grad()
def test_decoding_with_a_cache_is_the_full_pass(make_recurrent, form, controller, blocks):
    model = make_recurrent(form, controller, blocks).eval()
    tokens = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(3))
    prompt = torch.tensor([4, 2, 3])
    call = model
    if form == "encoder_decoder":
        memory = model.encode(tokens)

        def call(tokens, padding_mask=None, cache=None):
            return model.decode(tokens, memory, target_mask=padding_mask, cache=cache)

    full = call(tokens).logits
    cache = model.new_cache()
    steps = [call(tokens[:, i : i + 1], cache=cache).logits for i in range(9)]
    assert (torch.cat(steps, 1) - full).abs().max() < 1e-11
    cache = model.new_cache()  # prompts of different length, then one token at a time
    mask = torch.arange(4) < prompt[:, None]
    logits = call(tokens[:, :4], padding_mask=mask, cache=cache).logits
    for row in range(3):
        assert (logits[row, : prompt[row]] - full[row, : prompt[row]]).abs().max() < 1e-11
    for step in range(5):
        columns = prompt + step
        logits = call(tokens.gather(1, columns[:, None]), cache=cache).logits
        wanted = full[torch.arange(3), columns]
        assert (logits[:, 0] - wanted).abs().max() < 1e-11


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_gradients_are_those_of_finite_differences(make_recurrent, controller, blocks):
    """Along one random direction of all parameters at once."""
    model = make_recurrent("decoder_lm", controller, blocks).train()
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    torch.manual_seed(2)
    direction = [torch.randn_like(p) for p in parameters]

    def value(step):
        with torch.no_grad():
            for p, at, along in zip(parameters, start, direction, strict=True):
                p.copy_(at + step * along)
        torch.manual_seed(5)
        return loss_of(model, run(model))

    loss = value(0.0)
    found = torch.autograd.grad(loss, parameters)
    slope = sum((g * along).sum() for g, along in zip(found, direction, strict=True)).item()
    step = 1e-7
    with torch.no_grad():
        numeric = (value(step) - value(-step)).item() / (2 * step)
    assert numeric == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_controllers_keep_no_state_of_a_pass(make_recurrent, controller):
    model = make_recurrent("decoder_lm", controller).train()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    run(model).auxiliary_loss.backward()
    assert before == {name: set(vars(module)) for name, module in model.named_modules()}
    assert not list(model.buffers())


class _EvenFirst(ControllerOptions):
    """Odd positions sit out the first repeat."""

    kind = "even_first"

    def build(self, d_model):
        return _EvenFirstController()


class _EvenFirstController(Controller):
    def begin(self, about):
        return _EvenFirstRun(about)


class _EvenFirstRun(Run):
    def __init__(self, about):
        self.even = (about.positions % 2 == 0).expand(about.embedded.shape[:2])

    def before(self, place, step):
        return step._replace(active=self.even) if place.repeat == 0 else step


@torch.no_grad()
def test_who_sits_out_from_the_first_has_keys_and_values(make_recurrent, monkeypatch):
    monkeypatch.setitem(HALTING, _EvenFirst.kind, _EvenFirst)
    model = make_recurrent(halting=_EvenFirst(), prelude=0, coda=0).eval()
    tokens = torch.arange(14).view(2, 7) % 11
    output = model(tokens, trace=True)
    even = (torch.arange(7) % 2 == 0).expand(2, 7)
    for application, record in enumerate(output.trace["decoder"]):
        works = {
            name: (router.selection >= 0).flatten(2).any(-1)
            for name, router in record.routers.items()
        }
        sits_out = application < 2  # both layers of the group, in the first repeat
        wanted = even if sits_out else torch.ones_like(even)
        assert torch.equal(works["feed_forward"], wanted)
        assert torch.equal(works["attention.output"], wanted)
        assert works["attention.value"].all()
    first = output.repeats["decoder"][0]
    assert torch.equal(first[~even], output.hidden["decoder"][0][~even])
    assert (first[even] - output.hidden["decoder"][0][even]).abs().min() > 0
    cache = model.new_cache()
    steps = [model(tokens[:, i : i + 1], cache=cache).logits for i in range(7)]
    assert (torch.cat(steps, 1) - output.logits).abs().max() < 1e-11


@pytest.mark.parametrize("controller", ["act", "input_linear"])
def test_compiled_in_one_graph_it_computes_the_same(make_recurrent, controller):
    options = {"backprop_repeats": 1} if controller == "input_linear" else {}
    model = make_recurrent("decoder_lm", controller, "dense", group=1, prelude=0, coda=0).train()
    plain, wanted = gradients(model, num_repeats=2, **options)
    call = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    model.zero_grad()
    arguments, masks = batch(model)
    output = call(*arguments, **masks, num_repeats=2, **options)
    assert (output.logits - plain.logits).abs().max() < 1e-12
    loss_of(model, output).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name], rtol=0, atol=1e-11), name
