"""The second stage of Ouro: what the gate learns, and that nothing else does."""

import math

import pytest
import torch

from runners.config.objective import ObjectiveConfig
from runners.training.gate_stage import gate_loss, target_losses

OURO = ("model.depth={group: 1, repeats: 3}", "model.attention.num_heads=2")


@pytest.fixture
def make_loop(make_run, loop_of):
    def make(*overrides, form="decoder_lm", **changes):
        plain = ("model.dropout=0.0", "evaluate.interval=null")
        directory = make_run("loop", *plain, *OURO, *overrides, form=form, architecture="ouro")
        return loop_of(directory, **changes)

    return make


def by_hand(losses, leaving, counted):
    """Return the loss by the equation, target by target; lists of N numbers for each."""
    total = 0.0
    for row, lambdas, counts in zip(losses, leaving, counted, strict=True):
        for n in range(1, len(row)):
            goes_on = 1 / (1 + math.exp(-50 * (max(row[n - 1] - row[n], 0.0) - 0.005)))
            stays, leaves = math.log(1 - lambdas[n]), math.log(lambdas[n])
            total += counts * -(goes_on * stays + (1 - goes_on) * leaves) / len(row)
    return total


def test_the_loss_of_the_gate_is_that_of_the_equation():
    losses = torch.tensor([[2.0, 1.5, 1.49], [1.0, 1.2, 0.3], [3.0, 2.0, 1.0]]).double()
    gates = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.5, -0.7], [0.1, 0.2, 0.3]]).double()
    targets = torch.tensor([4, 0, -100])
    expected = by_hand(losses.tolist(), gates.sigmoid().tolist(), [1, 1, 0])
    assert gate_loss(losses, gates, targets).item() == pytest.approx(expected, rel=1e-12)
    # The gate before the repeat that improved, or leaving in the place of going on, is another.
    for wrong in (gates.roll(-1, dims=1), -gates):
        assert abs(gate_loss(losses, wrong, targets).item() - expected) > 0.1


def test_losses_of_targets_leave_out_what_is_ignored():
    logits = [torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])]
    found = target_losses(logits, torch.tensor([0, -100]))
    first = math.log(1 + math.exp(-1.0))
    torch.testing.assert_close(found, torch.tensor([[first, math.log(2)], [0.0, 0.0]]))


@pytest.mark.parametrize("form", ["decoder_lm", "encoder_classifier"])
def test_in_the_last_steps_the_gate_alone_changes(form, make_loop):
    objective = ObjectiveConfig(kind="last", gate_steps=3)
    options = {"form": form, "steps": 6, "warmup_steps": 1, "weight_decay": 0.1}
    loop, plain = make_loop(objective=objective, **options), make_loop(**options)
    gate = {name for name, _ in loop.model.named_parameters() if ".halting." in name}
    assert len(gate) == 2
    for _ in range(3):
        assert loop.advance() == plain.advance()
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    rows = [loop.advance() for _ in range(3)]
    changed = {n for n, p in loop.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == gate
    assert rows[0]["auxiliary_loss"] == 0.0
    assert all(row["gradient_norm"] > 0 for row in rows)
    plain.advance()
    others = {n for n, p in plain.model.named_parameters() if not torch.equal(p, before[n])}
    assert others == set(before)
