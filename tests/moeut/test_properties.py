"""What holds of every mechanism: gradients, checkpointing, batches, caches, resuming, compiling.

``docs/recurrence.md`` has the table, which ``WRITE_TABLE=1 pytest tests/moeut/test_properties.py``
writes anew. A cell is a check that was made, or the reason why the mechanism cannot have the
property.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mechanism_cases import (
    MECHANISMS,
    Tree,
    assert_document_has,
    attention,
    configure,
    feed_forward,
    outcome_table,
)
from torch import Tensor

import moeut
from moeut.models import build
from moeut.options import OptionError
from moeut.recurrence.cache import StackCache
from moeut.recurrence.controller import Pass
from moeut.recurrence.exit_rules import ExitRule
from moeut.recurrence.row_depth import RowDepth

DOCUMENT = Path(__file__).parents[2] / "docs" / "recurrence.md"
BEGIN = "<!-- properties: written by tests/moeut/test_properties.py -->"
END = "<!-- end of properties -->"

BLOCKS = {**attention("switch_head"), **feed_forward("sigma_moe")}
TOKENS = torch.tensor([[3, 4, 5, 3, 6], [5, 4, 4, 6, 3], [6, 3, 5, 4, 4]])
LENGTHS = torch.tensor([5, 3, 4])
INJECTS = {"state": {"injection": "add"}}
BY_ROW = {"row_depth": RowDepth(torch.zeros(3, dtype=torch.int64), torch.tensor([2, 3, 1]))}
BY_TOKEN = {"row_depth": RowDepth(torch.zeros_like(TOKENS), 1 + TOKENS % 3)}
WAYS: dict[str, tuple[Tree, Tree]] = {
    "train.repeats.per: sequence": (INJECTS, BY_ROW),
    "train.repeats.per: token": (INJECTS, BY_TOKEN),
    "train.backprop_repeats: 1": (INJECTS, {"backprop_repeats": 1}),
    "train.objective: every repeat": (INJECTS, {"read_repeats": [0, 1, 2]}),
    "exit: latent_diff": (INJECTS, {}),
    "exit: kl": (INJECTS, {}),
}
"""Options of the model, and of its call, for what is decided in training or evaluation."""
ROWS = [*MECHANISMS, *WAYS]


class Case:
    """A small float64 model with one mechanism, and how it is called."""

    def __init__(self, name: str = "", *, form: str | None = None) -> None:
        options, self.call = WAYS.get(name, (MECHANISMS.get(name, {}), {}))
        options = BLOCKS | options
        options["depth"] = {"group": 1, "repeats": 3, **options.get("depth", {})}
        try:
            self.config = configure(form or "decoder_lm", options)
        except OptionError:  # a whole answer is revised
            self.config = configure("encoder_labeller", options)
        torch.manual_seed(0)
        self.model: Any = build(self.config).double().train()
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for each, weight in self.model.named_parameters():
                noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                # Tokens halt at different repeats; what starts at zero acts.
                weight.add_(noise * (3.0 if "halting" in each else 0.2))
        if name.startswith("exit: "):
            criterion: Any = name.removeprefix("exit: ")
            self.model.exit_rule = ExitRule(criterion=criterion, threshold=0.3)
            self.model.eval()

    @property
    def has_cache(self) -> bool:
        return bool(self.config.form == "decoder_lm")

    def run(
        self, model: Any = None, rows: slice = slice(None), width: int = 5, **options: Any
    ) -> Any:
        """Return the output for some rows in so many columns."""
        tokens = torch.nn.functional.pad(TOKENS, (0, width - 5), value=7)[rows]
        real = (torch.arange(width) < LENGTHS[:, None])[rows]
        call = dict(self.call)
        if "row_depth" in call:
            first, last = (part[rows] for part in call["row_depth"])
            if first.dim() == 2:
                first, last = (torch.nn.functional.pad(p, (0, width - 5)) for p in (first, last))
            call["row_depth"] = RowDepth(first, last)
        mask = {"padding_mask" if self.has_cache else "source_mask": real}
        torch.manual_seed(5)
        call_it = self.model if model is None else model
        return call_it(tokens, **mask, **call, **options)

    def real(self, logits: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return the logits (N, V) at real tokens."""
        return logits[(torch.arange(logits.shape[1]) < LENGTHS[:, None])[rows]]

    def loss(self, output: Any, rows: slice = slice(None)) -> Tensor:
        """Return a smooth function of the logits at real tokens, and the auxiliary loss."""
        read = [output.logits, *output.repeat_logits]
        parts = [self.real(each, rows).log_softmax(-1)[:, 0].sum() for each in read]
        return torch.stack(parts).sum() + output.auxiliary_loss

    def gradients(self, **options: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return the output and the gradient of each parameter."""
        self.model.zero_grad()
        output = self.run(**options)
        self.loss(output).backward()
        return output, {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}


def has_gradients(case: Case, _: Path) -> str | None:
    """Compare the slope along a random direction of all parameters with central differences."""
    if "backprop_repeats" in case.call or case.config.recursion.kind != "none":
        return "a part of the gradient alone, by definition"
    parameters = list(case.model.parameters())
    start = [p.detach().clone() for p in parameters]
    torch.manual_seed(2)
    direction = [torch.randn_like(p) for p in parameters]
    _, found = case.gradients()
    named = dict(case.model.named_parameters())
    wanted = zip(named, direction, strict=True)
    slope = sum(float((found[n] * along).sum()) for n, along in wanted if n in found)

    def value(step: float) -> float:
        with torch.no_grad():
            for p, at, along in zip(parameters, start, direction, strict=True):
                p.copy_(at + step * along)
            return float(case.loss(case.run()))

    numeric = (value(1e-7) - value(-1e-7)) / 2e-7
    assert numeric == pytest.approx(slope, rel=2e-5)
    assert numeric != pytest.approx(1.001 * slope, rel=2e-5)
    return None


def recomputes(case: Case, _: Path) -> str | None:
    """Compare the bits with those under activation checkpointing."""
    plain, wanted = case.gradients()
    wanted = {name: gradient.clone() for name, gradient in wanted.items()}
    case.model.activation_checkpointing = True
    output, found = case.gradients()
    assert torch.equal(output.logits, plain.logits)
    assert torch.equal(output.auxiliary_loss, plain.auxiliary_loss)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    return None


def is_by_row(case: Case, _: Path) -> str | None:
    """Compare logits, losses and gradients with those of more padding, and of rows alone."""
    draws = case.config.state.start.kind == "noise"
    case.model.train(case.model.training and not draws)  # in training a row draws its own
    output, wanted = case.gradients()
    wanted = {name: gradient.clone() for name, gradient in wanted.items()}
    wider, found = case.gradients(width=8)
    assert torch.allclose(case.real(wider.logits), case.real(output.logits), atol=1e-11)
    assert torch.allclose(wider.auxiliary_loss, output.auxiliary_loss, atol=1e-11)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-9) for name in wanted)
    auxiliary, logits = 0.0, []
    for rows in (slice(n, n + 1) for n in range(3)):
        alone = case.run(rows=rows)
        logits.append(case.real(alone.logits, rows))
        auxiliary += float(alone.auxiliary_loss.detach()) / 3
    assert torch.allclose(torch.cat(logits), case.real(output.logits), atol=1e-11)
    assert auxiliary == pytest.approx(float(output.auxiliary_loss.detach()), abs=1e-11)
    # The check can fail: a row that is told to be longer is another.
    other = case.run(rows=slice(0, 2)).logits[:1, :3]
    assert not torch.allclose(other, output.logits[1:2, :3], atol=1e-3)
    return None


@torch.no_grad()
def decodes(case: Case, _: Path) -> str | None:
    """Compare token by token with the whole pass."""
    if not case.has_cache:
        return "revises a whole answer"
    if "row_depth" in case.call or "backprop_repeats" in case.call:
        return "acts in training alone"
    case.model.eval()
    try:
        cache = case.model.new_cache()
    except ValueError as error:
        return str(error)
    if case.call:
        return "acts in training alone"
    whole = case.model(TOKENS).logits
    steps = [case.model(TOKENS[:, i : i + 1], cache=cache).logits for i in range(5)]
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-11)
    return None


def resumes(case: Case, folder: Path) -> str | None:
    """Compare the bits of four updates with those of two, a file, and two."""
    if not case.model.training:
        return "acts in evaluation alone"

    def update(model: Any, optimizer: Any, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            case.loss(case.run(model)).backward()
            optimizer.step()

    def prepared(model: Any) -> tuple[Any, Any]:
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    case.model.float()
    model, optimizer = prepared(copy.deepcopy(case.model))
    update(model, optimizer, 2)
    model.save(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer")
    update(model, optimizer, 2)
    again, fresh = prepared(moeut.load(folder).train())
    fresh.load_state_dict(torch.load(folder / "optimizer"))
    assert not torch.equal(again.embedding.weight, model.embedding.weight)
    update(again, fresh, 2)
    wanted = model.state_dict()
    assert again.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.state_dict().items())
    return None


def compiles(case: Case, _: Path) -> str | None:
    """Compare with one graph of the whole pass."""
    plain, wanted = case.gradients()
    wanted = {name: gradient.clone() for name, gradient in wanted.items()}
    torch.compiler.reset()
    case.model.zero_grad()
    call = torch.compile(case.model, backend="aot_eager", fullgraph=True, dynamic=False)
    output = case.run(call)
    case.loss(output).backward()
    assert torch.allclose(case.real(output.logits), case.real(plain.logits), atol=1e-11)
    for name, weight in case.model.named_parameters():
        if name in wanted:
            assert torch.allclose(weight.grad, wanted[name], atol=1e-9), name
    return None


def acts(case: Case, _: Path) -> str | None:
    """Compare with the model without it, of the same weights: to leave it out would show."""
    plain = Case(form=case.config.form)
    if plain.config == case.config and not case.call and case.model.exit_rule is None:
        return "is the default"
    if case.config.shared_keys == "update":
        return "acts on tokens that sit out, here there are none"
    own = {n: w for n, w in case.model.state_dict().items() if n in plain.model.state_dict()}
    own = {n: w for n, w in own.items() if w.shape == plain.model.state_dict()[n].shape}
    plain.model.load_state_dict(own, strict=False)
    plain.model.train(case.model.training)
    output, others = case.gradients()
    without, found = plain.gradients()
    pairs = [(case.real(output.logits), plain.real(without.logits))]
    pairs += [(gradient, others[name]) for name, gradient in found.items() if name in others]
    assert not all(torch.allclose(*pair, atol=1e-6) for pair in pairs)
    return None


PROPERTIES: dict[str, Callable[[Case, Path], str | None]] = {
    "gradient": has_gradients,
    "checkpointing": recomputes,
    "batch": is_by_row,
    "cache": decodes,
    "resuming": resumes,
    "acts": acts,
}
GRAPHS = (
    ROWS if os.environ.get("MOEUT_GRAPHS") else ["halting: stick_breaking", "shared_keys: first"]
)
"""What is compiled: a graph takes four seconds. Others are compiled where they are tested."""
OUTCOMES: dict[tuple[str, str], str | None] = {}


@pytest.mark.parametrize("name", ROWS)
def test_what_holds_of_a_mechanism(name: str, tmp_path: Path) -> None:
    for each, check in PROPERTIES.items():
        OUTCOMES[name, each] = check(Case(name), tmp_path)


@pytest.mark.parametrize("name", GRAPHS)
def test_compiled_in_one_graph_it_computes_the_same(name: str, tmp_path: Path) -> None:
    compiles(Case(name), tmp_path)


def test_a_mean_over_padding_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation: a loss is the mean over padding too, as in published code."""
    mean = Pass.mean
    monkeypatch.setattr(Pass, "mean", lambda about, x, **_: mean(about, x, padding=True))
    with pytest.raises(AssertionError):
        is_by_row(Case("halting: act"), tmp_path)


def test_a_cache_of_other_repeats_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation: a repeat reads the keys and values of the one before."""
    store = StackCache.store
    monkeypatch.setattr(StackCache, "store", lambda c, n, k, v: store(c, max(n - 1, 0), k, v))
    with pytest.raises((AssertionError, RuntimeError)):
        decodes(Case("state.injection: add"), tmp_path)


def test_the_document_has_the_table() -> None:
    if len(OUTCOMES) < len(ROWS) * len(PROPERTIES):
        pytest.skip("needs the outcomes of all mechanisms, run before it")
    table = outcome_table(ROWS, PROPERTIES, OUTCOMES, heads=PROPERTIES)
    assert_document_has(DOCUMENT, table, begin=BEGIN, end=END)
