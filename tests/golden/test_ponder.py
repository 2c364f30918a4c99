"""PonderNet's halting, on the GRU of labml's annotated code, gives the numbers of that code."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from moeut.recurrence import exits
from moeut.recurrence.controller import Pass, Step
from moeut.recurrence.exit_gate import Ponder
from moeut.recurrence.schedule import Place

pytestmark = pytest.mark.golden

FOLDERS = ("ponder",)
VALUE, GRADIENT = 1e-10, 1e-9


def options(golden) -> Ponder:
    """The code's options: its divergence is the paper's the other way round."""
    return Ponder(
        prior=golden.config["lambda_p"],
        loss_weight=golden.config["beta"],
        divergence="from_prior",
        normalised_prior=False,
    )


def parameters(golden) -> dict[str, torch.Tensor]:
    return {name: t.clone().requires_grad_() for name, t in golden.part("param").items()}


def controller_of(halting: Ponder, golden):
    controller = halting.build(golden.config["hidden"]).double().train()
    part = {name: golden.tensors[f"param.lambda_layer.{name}"] for name in ("weight", "bias")}
    controller.load_state_dict(part)
    return controller


def run(golden, halting: Ponder | None = None):
    """Return the verdict, the logits of each step (N, B), and what was trained."""
    weights, t = parameters(golden), golden.tensors
    controller = controller_of(halting or options(golden), golden)
    gru = [weights[f"gru.{kind}_{way}"] for kind in ("weight", "bias") for way in ("ih", "hh")]
    state = t["x"].new_zeros(len(t["x"]), gru[0].shape[0] // 3)
    steps = golden.config["max_steps"]
    about = Pass(state.unsqueeze(1), torch.zeros(1).long(), None, steps, False)
    passing = controller.begin(about)
    logits = []
    for n in range(steps):
        place = Place(n, 0, n, steps, True, True)
        step = passing.before(place, Step(state.unsqueeze(1)))
        state = torch.gru_cell(t["x"], state, *gru)
        state = passing.after(place, step, state.unsqueeze(1)).squeeze(1)
        output = F.linear(state, weights["output_layer.weight"], weights["output_layer.bias"])
        logits.append(output.squeeze(-1))
    trained = weights | {
        "lambda_layer.weight": controller.weight,
        "lambda_layer.bias": controller.bias,
    }
    return passing.finish(state.unsqueeze(1)), torch.stack(logits), trained


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def test_exits_losses_and_gradients(golden) -> None:
    verdict, logits, trained = run(golden)
    t, halting = golden.tensors, options(golden)
    assert distance(logits, t["step_logits"]) <= VALUE
    gates = verdict.record["logits"][:, 0]  # (B, N)
    lambdas = gates.sigmoid().T.clone()
    lambdas[-1] = 1.0
    assert distance(lambdas, t["lambdas"]) <= VALUE
    log_p = verdict.record["log_probability"][:, 0]
    assert distance(log_p.T.exp(), t["p"]) <= VALUE
    like = {"normalised": False, "like": log_p}
    prior = exits.geometric(halting.prior, len(logits), **like)
    assert distance(prior.exp(), t["prior"]) <= VALUE
    paper = exits.divergence(log_p, prior).mean()
    assert distance(paper, t["kl_of_the_paper"]) <= VALUE

    targets = t["y"].to(logits.dtype).expand_as(logits)
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")  # (N, B)
    reconstruction = exits.expected(log_p, each.T).mean()
    assert distance(reconstruction, t["loss_rec"]) <= VALUE
    assert distance(verdict.loss, halting.loss_weight * t["loss_reg"]) <= VALUE
    loss = reconstruction + verdict.loss
    assert distance(loss, t["loss"]) <= VALUE
    loss.backward()
    expected = golden.part("grad")
    assert set(expected) == set(trained) - set(golden.config["params_without_gradient"])
    for name, gradient in expected.items():
        assert distance(trained[name].grad, gradient) <= GRADIENT, name


def test_where_a_draw_leaves(golden) -> None:
    verdict, logits, _ = run(golden)
    t = golden.tensors
    at = exits.first_drawn(t["bernoulli"].T).unsqueeze(1)  # (B, 1)
    p = verdict.record["log_probability"][:, 0].exp()
    assert distance(p.gather(1, at), t["p_halted"]) <= VALUE
    assert distance(logits.T.gather(1, at), t["logit_halted"]) <= VALUE


@pytest.mark.parametrize("change", [{"divergence": "to_prior"}, {"normalised_prior": True}])
def test_another_divergence_is_seen(golden, change) -> None:
    verdict, _, _ = run(golden, dataclasses.replace(options(golden), **change))
    wanted = options(golden).loss_weight * golden.tensors["loss_reg"]
    assert distance(verdict.loss, wanted) > 1e-5
