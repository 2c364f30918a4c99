"""Looped language models with an exit gate give the numbers of Ouro's code."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import moeut
from moeut.interop import from_ouro, mapping
from moeut.interop.ouro import ouro_maps
from moeut.recurrence import exits
from moeut.recurrence.exit_gate import ExitGate

pytestmark = pytest.mark.golden

FOLDERS = ("ouro",)
VALUE, GRADIENT = 1e-10, 1e-9


def options(golden) -> dict[str, Any]:
    return golden.config["options"]


def imported(golden, **halting: Any):
    """Return the model of a file, in evaluation, its gate with other options."""
    model = from_ouro(options(golden), golden.part("param"))
    if not halting:
        return model.eval()
    changed = dataclasses.replace(model.config.halting, **({"exit_at": None} | halting))
    other = moeut.build(dataclasses.replace(model.config, halting=changed)).double()
    other.load_state_dict(model.state_dict())
    return other.eval()


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def assert_gradients(golden, model, prefix: str) -> None:
    theirs = dict(golden.part(prefix))
    for name in golden.config["params_without_gradient"]:
        theirs.pop(name, None)
    expected = mapping.to_ours(ouro_maps(model.config), theirs)
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= GRADIENT, name
    assert not expected


def next_tokens(golden, logits: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy (B, T - 1) of each next token, counted or not."""
    targets = golden.tensors["tokens"][:, 1:]
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")


def counted_mean(golden, values: torch.Tensor) -> torch.Tensor:
    """Return the mean of values (B, T - 1) over the targets that have a label."""
    labels, targets = golden.tensors["labels"][:, 1:], golden.tensors["tokens"][:, 1:]
    assert torch.equal(labels[labels != -100], targets[labels != -100])
    return values[labels != -100].mean()


def read_all(golden, model):
    return model(golden.tensors["tokens"], read_repeats=range(options(golden)["total_ut_steps"]))


def test_expected_logits_and_their_loss(golden) -> None:
    model, t = imported(golden).train(), golden.tensors
    output = read_all(golden, model)
    for index, state in enumerate(output.repeats["decoder"]):
        assert distance(state, t[f"state.{index + 1}"]) <= VALUE, index
    assert distance(torch.stack(output.repeat_logits), t["step_logits"]) <= VALUE
    record = output.decisions["decoder"]
    assert distance(record["halting.logits"], t["gate_logits"]) <= VALUE
    assert distance(record["halting.log_probability"].exp(), t["exit_pdf"]) <= VALUE
    assert distance(output.logits, t["expected_logits"]) <= VALUE
    loss = counted_mean(golden, next_tokens(golden, output.logits))
    assert distance(loss, t["loss"]) <= VALUE
    assert output.auxiliary_loss.abs() <= VALUE
    loss.backward()
    assert_gradients(golden, model, "grad")


def test_the_objective_of_the_first_stage(golden) -> None:
    model, t = imported(golden).train(), golden.tensors
    output = read_all(golden, model)
    log_p = output.decisions["decoder"]["halting.log_probability"][:, :-1]
    each = torch.stack([next_tokens(golden, x) for x in output.repeat_logits], dim=-1)
    counted = t["labels"][:, 1:] != -100
    assert distance(each[counted], t["step_cross_entropy"][counted]) <= VALUE
    assert distance(exits.entropy(log_p), t["exit_entropy"]) <= VALUE
    penalty = ExitGate(entropy_weight=golden.config["entropy_weight"]).penalty(log_p)
    objective = counted_mean(golden, exits.expected(log_p, each) + penalty)
    assert distance(objective, t["objective"]) <= VALUE
    objective.backward()
    assert_gradients(golden, model, "grad_objective")


def test_exits_in_evaluation(golden) -> None:
    t = golden.tensors
    taken = set()
    for name in t:
        if not name.endswith(".logits") or name.split(".")[0] not in ("threshold", "exit_at"):
            continue
        rule, value = name.removesuffix(".logits").split(".", 1)
        how = {rule: float(value) if rule == "threshold" else int(value)}
        output = imported(golden, **how)(t["tokens"])
        assert distance(output.logits, t[name]) <= VALUE, name
        taken |= set(output.decisions["decoder"]["halting.repeats"].unique().tolist())
    assert len(taken) > 1
    expected = imported(golden, evaluate="expected")(t["tokens"])
    assert distance(expected.logits, t["weighted.logits"]) <= VALUE


def test_greedy_decoding_with_a_cache(golden) -> None:
    t, start = golden.tensors, golden.config["greedy_prompt"]
    model = imported(golden, threshold=golden.config["greedy_threshold"])
    cache, tokens, logits = model.new_cache(), t["tokens"][:, :start], []
    assert torch.equal(tokens, t["greedy.tokens"][:, :start])
    for step in range(t["greedy.logits"].shape[1]):
        new = tokens if step == 0 else tokens[:, -1:]
        logits.append(model(new, cache=cache).logits[:, -1])
        tokens = torch.cat((tokens, logits[-1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(tokens, t["greedy.tokens"])
    assert distance(torch.stack(logits, 1), t["greedy.logits"]) <= VALUE


def test_every_element_is_imported_once(golden, assert_imported_once) -> None:
    model = imported(golden)
    assert_imported_once(model, ouro_maps(model.config), golden.part("param"))
    with pytest.raises(ValueError, match="hidden_act='gelu': supported are silu"):
        from_ouro(options(golden) | {"hidden_act": "gelu"}, golden.part("param"))


def test_another_place_of_the_norm_is_seen(golden) -> None:
    """Once at the end, instead of at the end of every loop."""
    model = imported(golden, threshold=1.0)
    moved = dataclasses.replace(model.config, repeat_norm=False, final_norm=True)
    other = moeut.build(moved).double().eval()
    state = {n.replace("repeat_norm", "final_norm"): p for n, p in model.state_dict().items()}
    other.load_state_dict(state)
    tokens, wanted = golden.tensors["tokens"], golden.tensors["step_logits"][-1]
    assert distance(model(tokens).logits, wanted) <= VALUE
    assert distance(other(tokens).logits, wanted) > 1e-3
