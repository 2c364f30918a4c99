"""Recursive reasoning models give the numbers of TRM, HRM and URM, step by step of supervision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moeut.interop import mapping
from moeut.interop.recursive_reasoning import from_recursive_reasoning, recursive_maps, unwrapped
from moeut.recurrence.carry import Carried
from runners.training.supervision import Rules, halts, row_losses, value_of_going_on

pytestmark = pytest.mark.golden

FOLDERS = ("trm", "hrm", "urm")
RESTATED = "recursive"
VALUE, GRADIENT = 1e-10, 1e-9


def published(golden) -> dict[str, torch.Tensor]:
    """Return the state dict as the code saves it, its buffers among its weights."""
    buffers = {f"model.inner.{name}": t for name, t in golden.part("buffer").items()}
    return golden.part("param") | buffers


def rules_of(golden) -> Rules:
    options, family = golden.config["options"], golden.config["family"]
    learns_value = family == "hrm" or not options.get("no_ACT_continue", True)
    return Rules(
        most=options["loops" if family == "urm" else "halt_max_steps"],
        loss=golden.config["loss_type"].removesuffix("_cross_entropy"),
        halting="value" if learns_value else "right",
    )


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.numel() == theirs.numel()
    return (ours.reshape(theirs.shape) - theirs).abs().max().item()


def supervised(golden, model):
    """Yield, for each step of supervision, its tensors, losses, output and which rows halted."""
    rules, number, data, carried = rules_of(golden), 0, {}, None
    while f"step.{number}.inputs" in golden.tensors:
        t = golden.part(f"step.{number}")
        begins = t["halted_before"]
        for name in ("inputs", "labels", "puzzle_identifiers"):
            old = data.get(name, t[name])
            fresh = begins if old.dim() == 1 else begins[:, None]
            data[name] = torch.where(fresh, t[name], old)
        if carried is None:
            assert begins.all()
            states = [torch.zeros_like(t[name]) for name in ("z_L", "z_H") if name in t]
            steps = torch.zeros(len(begins), dtype=torch.int64)
        else:
            states = carried
        steps = torch.where(begins, 0, steps) + 1
        prefix = data["puzzle_identifiers"] if model.prefix is not None else None
        output = model(data["inputs"], prefix_numbers=prefix, carried=Carried(states, begins))
        carried = [state.detach() for state in output.carried]
        value = None
        if rules.learns_value:
            with torch.no_grad():
                further = model(
                    data["inputs"],
                    prefix_numbers=prefix,
                    carried=Carried(carried, torch.zeros_like(begins)),
                )
            value = value_of_going_on(further.halting, steps, rules=rules)
        losses = row_losses(
            output.logits, output.halting, data["labels"], rules=rules, next_value=value
        )
        least = (t["explore_uniform"] < exploration(golden)) * t["explore_steps"]
        halted = halts(output.halting, steps, least, rules=rules)
        yield t, losses, output, steps, halted, value, data
        number += 1


def exploration(golden) -> float:
    options = golden.config["options"]
    return 0.1 if golden.config["family"] == "urm" else options["halt_exploration_prob"]


def test_each_step_of_supervision(golden) -> None:
    model = from_recursive_reasoning(golden.config["options"], published(golden)).train()
    seen = 0
    for t, losses, output, steps, halted, value, _ in supervised(golden, model):
        names = ("z_L", "z_H")[: len(output.carried)]
        for name, state in zip(names, output.carried, strict=True):
            assert distance(state, t[name]) <= VALUE
        assert distance(output.logits, t["logits"]) <= VALUE
        assert distance(output.halting[:, 0], t["q_halt_logits"]) <= VALUE
        assert distance(output.halting[:, 1], t["q_continue_logits"]) <= VALUE
        if value is not None:
            assert distance(value, t["target_q_continue"]) <= VALUE
        assert distance(losses.answer.sum(), t["metric.lm_loss"]) <= VALUE
        loss = (losses.answer + losses.halting).sum()
        assert distance(loss, t["loss"]) <= VALUE
        assert steps.tolist() == t["steps"].tolist()
        assert halted.tolist() == t["halted"].tolist()
        seen += 1
    assert seen >= 2


def test_gradients_of_each_step(golden) -> None:
    model = from_recursive_reasoning(golden.config["options"], published(golden)).train()
    compared = 0
    for t, losses, _, _, _, _, data in supervised(golden, model):
        theirs = {name.removeprefix("grad."): g for name, g in t.items() if "grad." in name}
        if not theirs:
            continue
        model.zero_grad()
        (losses.answer + losses.halting).mean().backward()
        assert_gradients(model, theirs, data["puzzle_identifiers"])
        compared += 1
    assert compared >= 1


def assert_gradients(model: Any, theirs: dict[str, torch.Tensor], identifiers: Any) -> None:
    theirs = dict(theirs)
    if model.prefix is not None:  # theirs has a row for each example, ours for each puzzle
        rows = theirs.pop(next(name for name in theirs if name.endswith("local_weights")))
        of_puzzles = torch.zeros_like(model.prefix.weight).index_add(0, identifiers, rows)
        theirs["model.inner.puzzle_emb.weights"] = of_puzzles
    maps = [m for m in recursive_maps(model.config) if "init" not in m.theirs]
    expected = mapping.to_ours(maps, unwrapped(theirs))
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, expected.pop(name)) <= GRADIENT, name
    assert not expected


@torch.no_grad()
def test_evaluation_takes_all_steps(golden) -> None:
    if "eval.step_logits" not in golden.tensors:
        pytest.skip("the file has no evaluation")
    model = from_recursive_reasoning(golden.config["options"], published(golden)).eval()
    first = golden.part("step.0")
    inputs = golden.tensors.get("eval.inputs", first["inputs"])
    numbers = golden.tensors.get("eval.puzzle_identifiers", first["puzzle_identifiers"])
    output = model(inputs, prefix_numbers=None if model.prefix is None else numbers)
    logits = torch.stack(output.step_logits or [output.logits])  # one pass is the whole answer
    assert distance(logits, golden.tensors["eval.step_logits"]) <= VALUE
    assert torch.equal(output.logits, logits[-1])
