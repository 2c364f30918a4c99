import itertools

import pytest
import torch
from recurrent_cases import ACT, REPEATS, batch, state
from torch.nn import functional as F

from moeut.ops import Dispatch
from moeut.options import OptionError
from moeut.recurrence.conditioning import Coordinates, timing_signal
from moeut.recurrence.halting import AdaptiveComputationTime


def _sums(model, states, threshold):
    """Return result, remainder and repeats of one token's states [h_0 … h_R], one at a time."""
    unit = model.decoder.controllers["halting"]
    spent, result = 0.0, 0.0
    for repeat, (before, after) in enumerate(itertools.pairwise(states)):
        p = torch.sigmoid(before @ unit.weight[0] + unit.bias[0])
        if spent + p > threshold or repeat == len(states) - 2:
            return result + (1 - spent) * after, 1 - spent, repeat + 1
        result, spent = result + p * after, spent + p
    raise AssertionError("the last repeat halts everyone")


def _frozen_states(model, x):
    """Return the states of each token of one row x (T, D), keys and values carried by hand.

    Pre-norm, dense, causal, without positions, one layer in the group.
    """
    layer = model.decoder.layers[1]
    attention, norm = layer.attention, layer.attention_norm
    heads = attention.num_heads
    unit = model.decoder.controllers["halting"]
    states = [[h] for h in x]
    spent = [0.0] * len(x)
    keys, values = [None] * len(x), [None] * len(x)
    for repeat in range(REPEATS):
        running = [t for t in range(len(x)) if spent[t] < 1]
        for t in running:
            h = states[t][-1]
            p = torch.sigmoid(h @ unit.weight[0] + unit.bias[0]).item()
            stops = spent[t] + p > ACT.threshold or repeat == REPEATS - 1
            spent[t] = 1.0 if stops else spent[t] + p
            keys[t] = attention.key(norm(h)).view(heads, -1)
            values[t] = attention.value(norm(h)).view(heads, -1)
        for t in running:
            h = states[t][-1]
            query = attention.query(norm(h)).view(heads, 1, -1)
            k, v = (torch.stack(kept[: t + 1], 1) for kept in (keys, values))
            weights = (query @ k.transpose(1, 2) / attention.head_size**0.5).softmax(-1)
            h = h + attention.output((weights @ v).flatten())
            inner = layer.feed_forward
            normed = layer.feed_forward_norm(h)
            states[t].append(h + inner.down(F.relu(inner.up(normed))))
    return states


def test_halting_is_the_formula_token_by_token(make_recurrent):
    model = make_recurrent(
        "decoder_lm", "act", "dense", norm="pre", position="none", group=1, coda=0
    ).train()
    tokens = batch(model)[0][0]
    output = model(tokens, trace=True)
    result, remainders, repeats = [], [], []
    for row in range(3):
        states = _frozen_states(model, output.hidden["decoder"][1][row])
        for token in states:
            one = _sums(model, token, ACT.threshold)
            for kept, value in zip((result, remainders, repeats), one, strict=True):
                kept.append(value)
    wanted = model.head(model.decoder.final_norm(torch.stack(result)), model.embedding.weight)
    assert (output.logits.flatten(0, 1) - wanted).abs().max() < 1e-11
    loss = ACT.loss_weight * torch.stack(
        [torch.as_tensor(one, dtype=torch.float64) for one in remainders]
    )
    assert output.auxiliary_loss.item() == pytest.approx(loss.mean().item(), abs=1e-13)
    taken = output.decisions["decoder"]["halting.repeats"].flatten().tolist()
    assert taken == repeats
    assert len(set(repeats)) > 1


@torch.no_grad()
def test_the_unit_reads_the_state_with_its_signals_and_without_the_input(make_recurrent):
    options = {"conditioning": Coordinates(), "state": state("input", "add"), "position": "none"}
    model = make_recurrent("decoder_lm", "act", "dense", prelude=0, **options).eval()
    tokens = batch(model)[0][0]
    output = model(tokens, num_repeats=2)
    unit = model.decoder.controllers["halting"]
    signals = timing_signal(torch.arange(6), 16, torch.float64)
    signals = signals + timing_signal(torch.tensor(0), 16, torch.float64)
    p = (model.embedding(tokens) + signals) @ unit.weight[0] + unit.bias
    p = p.sigmoid()
    wanted = torch.where(p > ACT.threshold, torch.ones_like(p), 1 - p)
    found = output.decisions["decoder"]["halting.remainder"]
    assert (found - wanted).abs().max() < 1e-12
    assert (wanted < 1).any()


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_classifier", "encoder_decoder"])
def test_halted_tokens_have_no_expert_rows(make_recurrent, form, monkeypatch):
    model = make_recurrent(form, prelude=0, coda=0).eval()
    rows = []
    build = Dispatch.from_indices

    def counting(indices, num_experts):
        rows.append(int((indices >= 0).sum()))
        return build(indices, num_experts)

    monkeypatch.setattr(Dispatch, "from_indices", counting)
    arguments, masks = batch(model)
    output = model(*arguments, **masks, trace=True)
    blocks = {"attention": 2 * 2 * 2, "feed_forward": 2}  # heads × top_k, twice; top_k
    once = 0
    wanted = 0
    for name, decisions in output.decisions.items():
        taken = decisions["halting.repeats"]
        per_token = sum(blocks.values())
        if form == "encoder_decoder" and name == "decoder":
            per_token += blocks["attention"] // 2  # cross-attention's outputs
            once = 2 * 4 * int(masks["source_mask"].sum())  # its values, for each of two layers
        wanted += 2 * per_token * int(taken.sum())
        for repeat in range(REPEATS):
            for layer in range(2):
                routers = output.trace[name][2 * repeat + layer].routers
                for router, kept in routers.items():
                    if router == "cross_attention.value":
                        continue
                    chosen = (kept.selection >= 0).flatten(2).any(-1)
                    assert torch.equal(chosen, taken > repeat), (name, repeat, router)
        assert int((taken < REPEATS).sum()) > 0
    assert sum(rows) == wanted + once
    everyone = make_recurrent(form, prelude=0, coda=0, halting=AdaptiveComputationTime(
        threshold=1.0, initial_bias=-50.0)).eval()  # fmt: skip
    rows.clear()
    everyone(*arguments, **masks)
    assert sum(rows) > wanted + once


def test_halted_states_stay_and_updated_ones_go_on(make_recurrent):
    for controller, stays in (("act", True), ("act_update", False)):
        model = make_recurrent("decoder_lm", controller).eval()
        arguments, masks = batch(model)
        output = model(*arguments, **masks, trace=True)
        taken = output.decisions["decoder"]["halting.repeats"]
        states = output.repeats["decoder"]
        halted = (taken < REPEATS) & masks["padding_mask"]
        before, last = states[-2][halted], states[-1][halted]
        assert torch.equal(before, last) == stays


def test_a_pass_ends_where_no_token_runs(make_recurrent):
    """And decides the same as one that may not end: a cache needs every application."""
    halting = AdaptiveComputationTime(threshold=0.5, initial_bias=30.0)
    model = make_recurrent(halting=halting).eval()
    tokens = batch(model)[0][0]
    applied = []
    model.decoder.layers[1].register_forward_pre_hook(lambda *_: applied.append(1))
    short = model(tokens).logits
    assert len(applied) == 1
    whole = model(tokens, cache=model.new_cache()).logits
    assert len(applied) == 1 + REPEATS
    assert (short - whole).abs().max() < 1e-12


def test_padding_has_no_say_unless_asked(make_recurrent):
    for over, differs in (("real", False), ("all", True)):
        halting = AdaptiveComputationTime(threshold=0.8, initial_bias=-1.0, loss_over=over)
        model = make_recurrent("decoder_lm", "act", "dense", halting=halting).train()
        losses = []
        for width in (6, 9):
            arguments, masks = batch(model, width=width)
            losses.append(model(*arguments, **masks).auxiliary_loss.item())
        assert (abs(losses[0] - losses[1]) > 1e-4) == differs


def test_float32_sums_round(make_recurrent):
    arguments = None
    results = []
    for accumulator in ("exact", "float32"):
        halting = AdaptiveComputationTime(threshold=0.8, initial_bias=-1.0, accumulator=accumulator)
        model = make_recurrent("decoder_lm", "act", "dense", halting=halting).train()
        arguments = batch(model)
        results.append(model(*arguments[0], **arguments[1]).auxiliary_loss.item())
    assert 0 < abs(results[0] - results[1]) < 1e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0: must be above 0 and at most 1"),
        ({"loss_weight": -1.0}, "loss_weight=-1.0: must be a finite number of at least 0"),
        ({"halted": "stop"}, "halted='stop': expected one of freeze, update"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        AdaptiveComputationTime(**options)


def test_halting_needs_whole_repeats(make_config):
    with pytest.raises(OptionError, match=r"depth.order='sequence': halting decides"):
        make_config(order="sequence", halting=ACT)
    with pytest.raises(OptionError, match=r"depth.repeats=1: halting needs at least 2"):
        make_config(group=4, repeats=1, halting=ACT)
