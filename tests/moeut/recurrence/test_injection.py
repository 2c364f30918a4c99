import pytest
import torch
from recurrent_cases import CONTROLLERS, batch, loss_of, state

from moeut.blocks.attention import AttentionContext
from moeut.options import OptionError
from moeut.recurrence.injection import AddInjection, NoiseStart, State, position_noise

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


INJECTIONS = {
    "add": lambda model: lambda x, e: x + e,
    "linear": lambda model: (
        lambda x, e: (
            x @ model.decoder.controllers["injection"].rule.weight[:, :16].T
            + e @ model.decoder.controllers["injection"].rule.weight[:, 16:].T
        )
    ),
}


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("start", ["input", "zero"])
@torch.no_grad()
def test_repeats_read_state_and_input(make_recurrent, start, injection):
    model = make_recurrent(
        "decoder_lm", "zero_add", "dense", state=state(start, injection), position="none"
    ).eval()
    tokens = batch(model)[0][0]
    begin = {"input": lambda e: e, "zero": torch.zeros_like}[start]
    inject = INJECTIONS[injection](model)
    wanted = _unrolled(model, begin, inject, tokens, 3)
    assert (model(tokens, num_repeats=3).logits - wanted).abs().max() < 1e-12
    swapped = _unrolled(model, begin, lambda x, e: inject(e, x), tokens, 3)
    differs = (swapped - wanted).abs().max() > 1e-3
    assert differs == (injection == "linear")  # which side is the state's matters


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
        output = model(batch(model)[0][0])
    assert {x.dtype for x in output.repeats["decoder"]} == {torch.float32}


@pytest.mark.parametrize("start", ["zero", "noise"])
def test_a_start_that_reads_nothing_needs_an_injection(start):
    with pytest.raises(OptionError, match=rf"injection='none': start={start} needs an injection"):
        state(start, "none")


def test_compiled_noise_is_the_same(make_model):
    """Fused into the graph around it, the hashes would come out as others."""
    noisy = State(start=NoiseStart(), injection=AddInjection())
    model = make_model(
        group=1, attention="dense", feed_forward="dense", position="none", norm="pre", state=noisy
    ).float()
    tokens = torch.arange(12).remainder(11).view(2, 6)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        wanted = model.eval()(tokens, padding_mask=mask).logits
        found = torch.compile(model)(tokens, padding_mask=mask).logits
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
