import math

import pytest
import torch

from moeut.blocks.routing import (
    RouterRecord,
    RoutingContext,
    balance_loss,
    choose_experts,
    mean_probability,
    record,
    router_logits,
)


def _logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _context(real: torch.Tensor | None = None) -> RoutingContext:
    return RoutingContext.create(real, balance=True, trace=False, dtype=torch.float64)


def test_sigmoid_gates_are_not_renormalised():
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0]).double().view(1, 1, 1, 4)
    selection, gates = choose_experts(logits, 2)
    chosen = dict(zip(selection.flatten().tolist(), gates.flatten().tolist(), strict=True))
    assert chosen == pytest.approx({0: 1 / (1 + math.exp(-2)), 3: 1 / (1 + math.exp(-1))})


def test_softmax_gates_are_over_all_experts():
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0]).double().view(1, 1, 1, 4)
    selection, gates = choose_experts(logits, 2, router="softmax")
    total = sum(math.exp(x) for x in (2.0, -1.0, 0.5, 1.0))
    chosen = dict(zip(selection.flatten().tolist(), gates.flatten().tolist(), strict=True))
    assert chosen == pytest.approx({0: math.exp(2) / total, 3: math.exp(1) / total})


@pytest.mark.parametrize("router", ["sigmoid", "softmax"])
def test_expert_dropout_drops_slots_and_stays_finite(router):
    torch.manual_seed(0)
    logits = _logits(20, 5, 2, 4).requires_grad_()
    selection, gates = choose_experts(logits, 3, router=router, drop=0.7)
    dropped = selection == -1
    assert 0.2 < dropped.float().mean() < 0.8  # 1.2 of 4 experts survive, 3 are wanted
    assert (gates[dropped] == 0).all()
    assert (gates[~dropped] > 0).all()
    for row in selection.flatten(0, 2).tolist():
        kept = [expert for expert in row if expert >= 0]
        assert len(set(kept)) == len(kept)
    gates.square().sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


def test_padding_gets_no_expert():
    real = torch.tensor([[True, True, False]])
    selection, _ = choose_experts(_logits(1, 3, 2, 4), 2, real=real)
    assert (selection[0, 2] == -1).all()
    assert (selection[0, :2] >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_logits_have_float32_at_least(dtype):
    x, weight = _logits(3, 4, 8), _logits(5, 8, seed=1)
    assert router_logits(x, weight).dtype == torch.float64
    low_x, low_weight = x.to(dtype), weight.to(dtype)
    exact = low_x.double() @ low_weight.double().T
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = router_logits(low_x, low_weight)
        assert logits.dtype == torch.float32
        assert (logits - exact).abs().max() < 1e-5  # bfloat16 would lose 1e-2


def _record(logits: torch.Tensor, context: RoutingContext) -> RouterRecord:
    return RouterRecord(mean_probability(logits, context), mass=context.mass)


def _published_balance_loss(logits: list[torch.Tensor]) -> torch.Tensor:
    """The published formula: log-mean over repeats and time, of each sequence."""
    stacked = torch.stack(logits, dim=1).log_softmax(-1)  # (B, repeats, T, H, E)
    repeats, time = stacked.shape[1:3]
    log_mean = stacked.flatten(1, 2).logsumexp(1) - math.log(repeats * time)
    entropy = -(log_mean * log_mean.exp()).sum(-1)
    return -entropy.mean()


def test_balance_loss_is_the_published_formula():
    modules = [[_logits(3, 5, 2, 4, seed=10 * m + r) for r in range(3)] for m in range(2)]
    context = _context()
    means = [[_record(logits, context) for logits in module] for module in modules]
    wanted = 0.01 * sum(_published_balance_loss(module) for module in modules)
    assert balance_loss(means, context, 0.01).item() == pytest.approx(wanted.item(), abs=1e-15)
    separately = 0.01 * sum(_published_balance_loss([one]) for module in modules for one in module)
    assert abs(wanted - separately) > 1e-3  # repeats are joined before the entropy


def test_padding_changes_neither_the_loss_nor_its_gradient():
    alone = [_logits(1, n, 2, 4, seed=n).requires_grad_() for n in (5, 3)]
    losses = [balance_loss([[_record(one, _context())]], _context(), 0.1) for one in alone]
    wanted = sum(losses) / 2
    wanted.backward()

    padded = 100 * _logits(3, 7, 2, 4, seed=9)  # the last row has no real token at all
    padded[0, :5], padded[1, :3] = alone[0][0].detach(), alone[1][0].detach()
    padded.requires_grad_()
    real = torch.arange(7) < torch.tensor([5, 3, 0])[:, None]
    context = _context(real)
    loss = balance_loss([[_record(padded, context)]], context, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-15)
    assert torch.allclose(padded.grad[0, :5], alone[0].grad[0], rtol=0, atol=1e-16)
    assert torch.allclose(padded.grad[1, :3], alone[1].grad[0], rtol=0, atol=1e-16)
    assert (padded.grad[~real] == 0).all()

    ignoring = balance_loss([[_record(padded, _context())]], _context(), 0.1)
    assert abs(ignoring - wanted) > 1e-3


def test_balance_loss_survives_probabilities_of_zero_and_batches_without_tokens():
    logits = torch.tensor([0.0, -2000.0]).view(1, 1, 1, 2).requires_grad_()
    context = _context()
    balance_loss([[_record(logits, context)]], context, 1.0).backward()
    assert logits.grad.isfinite().all()

    nothing = _context(torch.zeros(1, 1, dtype=torch.bool))
    loss = balance_loss([[_record(logits, nothing)]], nothing, 1.0)
    assert loss.item() == 0.0
    assert balance_loss([], context, 1.0) is None


def test_modules_of_different_width_add_up():
    context = _context()
    modules = [[_record(_logits(2, 3, 1, width, seed=width), context)] for width in (4, 2, 4)]
    apart = [balance_loss([one], context, 0.3) for one in modules]
    assert balance_loss(modules, context, 0.3).item() == pytest.approx(sum(apart).item(), abs=1e-15)


def test_records_keep_only_what_is_asked_for():
    logits = _logits(2, 3, 2, 4)
    routes = choose_experts(logits, 2)
    assert record(logits, routes, RoutingContext()) is None
    training = record(logits, routes, RoutingContext(balance=True))
    assert training.probability.shape == (2, 2, 4)
    assert training.logits is training.selection is training.gates is None
    traced = record(logits, routes, RoutingContext(trace=True))
    assert traced.probability is None
    assert traced.logits is logits
    assert traced.select_heads(slice(1, 2)).selection.shape == (2, 3, 1, 2)


def test_each_token_of_each_application_counts_alike():
    """One that takes part in two applications counts twice, one that halted once."""
    logits = [_logits(2, 4, 2, 4, seed=seed) for seed in range(2)]
    active = torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 1]], [[1, 0, 0, 0], [0, 0, 0, 0]]]).bool()
    real = active[0]
    for padding in (None, real):
        context = _context(padding)
        records = [
            _record(one, context.among(mask, torch.float64))
            for one, mask in zip(logits, active, strict=True)
        ]
        loss = balance_loss([records], context, 0.1)
        p = [
            torch.cat([one[row][mask[row]] for one, mask in zip(logits, active, strict=True)])
            .softmax(-1)
            .mean(0)
            for row in range(2)
        ]
        wanted = 0.1 * sum((one * one.log()).sum(-1).mean() for one in p) / 2
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-15)
