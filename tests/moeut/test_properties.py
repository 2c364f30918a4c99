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
from unittest import mock

import pytest
import torch
from mechanism_cases import FAILED, assert_document_has
from property_cases import (
    BEGIN,
    COLUMNS,
    DOCUMENT,
    END,
    ROWS,
    Case,
    assert_near,
    hold_truncated,
    share_out,
)
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.utils.checkpoint import checkpoint

import moeut
from moeut.recurrence import passing
from moeut.recurrence.cache import StackCache
from moeut.recurrence.controller import Pass

ALL = bool(os.environ.get("MOEUT_MECHANISMS"))
OUTPUTS, GRADIENTS = 1e-12, 1e-11
"""Bounds in float64, of values up to 4 and 40: rounding made 7e-15 and 6e-14 of them."""


def has_gradients(case: Case) -> None:
    """Let gradcheck compare all gradients with central differences.

    Entry by entry for the embedded tokens and small weights of the mechanism, else along a random
    direction of each weight. What is drawn or chosen stays as it is: draws have one seed, and a
    step of 1e-6 changes no choice.
    """
    named = dict(case.model.named_parameters())
    moved = torch.zeros(*case.tokens.shape, 4, dtype=torch.float64, requires_grad=True)
    case.model.embedding.register_forward_hook(lambda *about: about[-1] + moved)
    generator = torch.Generator()

    def outputs(*_: Tensor) -> Tensor:
        """Return two mixtures of the log-probabilities, and the auxiliary loss."""
        output = case.run()
        read = torch.cat([each.flatten() for each in case.read(output)])
        mixtures = torch.randn(2, len(read), generator=generator.manual_seed(3))
        return torch.cat([mixtures.double() @ read, output.auxiliary_loss[None]])

    slow: list[str] = []
    for each in sorted(named if ALL else case.own(), key=lambda each: named[each].numel()):
        if sum(named[other].numel() for other in [*slow, each]) <= (1600 if ALL else 50):
            slow.append(each)
    fast = [weight for each, weight in named.items() if each not in slow]
    bounds = {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-6}
    assert gradcheck(outputs, [moved, *(named[each] for each in slow)], **bounds)
    assert not fast or gradcheck(outputs, fast, fast_mode=True, **bounds)


def recomputes(case: Case, _: Path) -> str | None:
    """Compare the bits with those under activation checkpointing."""
    plain, wanted = case.gradients()
    wanted = {name: gradient.clone() for name, gradient in wanted.items()}
    case.model.activation_checkpointing = True
    with mock.patch.object(passing, "checkpoint", wraps=passing.checkpoint) as checkpointed:
        output, found = case.gradients()
    assert checkpointed.called
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
    assert_near(case.read(wider), case.read(output), OUTPUTS)
    assert_near([wider.auxiliary_loss], [output.auxiliary_loss], OUTPUTS)
    assert found.keys() == wanted.keys()
    assert_near(found.values(), wanted.values(), GRADIENTS)
    parts = [slice(n, n + 1) for n in range(3)]
    alone = [case.run(rows=rows) for rows in parts]
    read = zip(*(case.read(one, rows) for one, rows in zip(alone, parts, strict=True)), strict=True)
    assert_near([torch.cat(each) for each in read], case.read(output), OUTPUTS)
    auxiliary = torch.stack([one.auxiliary_loss for one in alone]).mean()
    assert_near([auxiliary], [output.auxiliary_loss], OUTPUTS)
    # The check can fail: a row that is told to be longer is another.
    other = case.run(rows=slice(0, 2)).logits[:1, :3]
    assert not torch.allclose(other, output.logits[1:2, :3], atol=1e-3)
    return None


@torch.no_grad()
def decodes(case: Case, _: Path) -> str | None:
    """Compare token by token with the whole pass."""
    if "row_depth" in case.call or "backprop_repeats" in case.call:
        return "acts in training alone"
    case.model.eval()
    try:
        cache = case.model.new_cache()
    except ValueError as error:
        return str(error)
    if case.call:
        return "acts in training alone"
    whole = case.model(case.tokens).logits
    steps = [case.model(case.tokens[:, i : i + 1], cache=cache).logits for i in range(5)]
    assert_near([torch.cat(steps, dim=1)], [whole], OUTPUTS)
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


def compiles(case: Case, _: Path, backend: Any = "aot_eager") -> str | None:
    """Compare with one graph of the whole pass, which then serves other rows as it is."""
    plain, wanted = case.gradients()
    wanted = {name: gradient.clone() for name, gradient in wanted.items()}
    torch.compiler.reset()
    call = torch.compile(case.model, backend=backend, fullgraph=True, dynamic=False)
    output, found = case.gradients(model=call)
    assert_near(case.read(output), case.read(plain), OUTPUTS)
    assert_near([output.auxiliary_loss], [plain.auxiliary_loss], OUTPUTS)
    # One graph goes through repeats in which no token is left, which leaves zeros.
    assert found.keys() >= wanted.keys()
    wanted = {n: wanted.get(n, torch.zeros_like(gradient)) for n, gradient in found.items()}
    assert_near(found.values(), wanted.values(), GRADIENTS)
    case.tokens, case.lengths = case.tokens.flip(0), case.lengths.flip(0)
    with torch.compiler.set_stance("fail_on_recompile"):
        output = case.run(call)
    assert_near(case.read(output), case.read(case.run()), OUTPUTS)
    return None


PROPERTIES: dict[str, Callable[[Case, Path], str | None]] = {
    "checkpointing": recomputes,
    "batch": is_by_row,
    "cache": decodes,
    "resuming": resumes,
}
TOGETHER = share_out(ROWS)
OUTCOMES: dict[tuple[str, str], str | None] = {}


def attempt(name: str, column: str, check: Callable[[], str | None]) -> None:
    """Note the outcome of a check, which has failed until it has not."""
    OUTCOMES[name, column] = FAILED
    OUTCOMES[name, column] = check()


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", [n for n in ROWS if n.startswith(("halting: ", "exit: "))])
def test_tokens_leave_at_different_repeats(name: str, small: bool) -> None:
    """Else what holds of a mechanism would hold because nobody leaves, or everybody does."""
    (decisions,) = Case(name, small=small).run().decisions.values()
    (used,) = (taken for each, taken in decisions.items() if each.endswith(".repeats"))
    assert len(used[used > 0].unique()) > 1  # padding took none


@pytest.mark.parametrize("name", ROWS)
def test_what_holds_of_a_mechanism(name: str, tmp_path: Path) -> None:
    for each, check in PROPERTIES.items():
        attempt(name, each, lambda check=check: check(Case(name), tmp_path))


@pytest.mark.parametrize("names", TOGETHER, ids=" + ".join)
def test_it_holds_of_several_mechanisms_together(names: list[str], tmp_path: Path) -> None:
    for check in PROPERTIES.values():
        check(Case(*names), tmp_path)


@pytest.mark.parametrize("name", ROWS)
def test_gradients_of_a_mechanism(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_truncated(monkeypatch)
    attempt(name, "gradient", lambda: has_gradients(Case(name, small=True)))


@pytest.mark.parametrize("name", ["train.backprop_repeats: 1", "recursion: two_level"])
def test_a_gradient_that_is_left_out_would_be_seen(name: str) -> None:
    """The mutation: applications without gradient are not held."""
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        has_gradients(Case(name, small=True))


def test_a_wrong_gradient_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation: what was left when a token stopped has no gradient, as in published code."""
    mean = Pass.mean
    monkeypatch.setattr(Pass, "mean", lambda about, x, **how: mean(about, x.detach(), **how))
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        has_gradients(Case("halting: act", small=True))


@pytest.mark.skipif(not ALL, reason="takes minutes: MOEUT_MECHANISMS=1, or nox -s mechanisms")
@pytest.mark.parametrize("name", ROWS)
def test_compiled_in_one_graph_it_computes_the_same(name: str, tmp_path: Path) -> None:
    attempt(name, "graph", lambda: compiles(Case(name), tmp_path))


@pytest.mark.parametrize("names", TOGETHER, ids=" + ".join)
def test_together_they_compile_in_one_graph(names: list[str], tmp_path: Path) -> None:
    """All mechanisms in a fifth of the graphs, which are traced but not differentiated ahead."""
    compiles(Case(*names, small=True), tmp_path, backend="eager")


class WrongGraph:
    """A compiler that gives another graph than it was asked for."""

    def __init__(self, change: Callable[[list[Any]], list[Any]]) -> None:
        self.change = change

    def __call__(self, graph: Any, _: Any) -> Callable[..., list[Any]]:
        return lambda *inputs: self.change(list(graph(*inputs)))


def nudge(outputs: list[Any]) -> list[Any]:
    """Return outputs that are wrong by a billionth."""
    return [x * (1 + 1e-9) if torch.is_floating_point(x) else x for x in outputs]


def test_a_graph_of_other_numbers_would_be_seen(tmp_path: Path) -> None:
    """The mutation: a billionth, which a bound relative to the numbers would take."""
    with pytest.raises(AssertionError, match="apart"):
        compiles(Case("state.injection: add", small=True), tmp_path, WrongGraph(nudge))


def test_a_graph_that_holds_numbers_of_its_first_rows_would_be_seen(tmp_path: Path) -> None:
    """The mutation: what the first call computed is part of the graph."""
    first: list[Any] = []

    def hold(outputs: list[Any]) -> list[Any]:
        first.extend(outputs if not first else [])
        return first

    with pytest.raises(AssertionError, match="apart"):
        compiles(Case("state.injection: add", small=True), tmp_path, WrongGraph(hold))


def test_a_state_that_is_recomputed_otherwise_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation: the second pass through a layer reads another state."""

    def drift(layer: Callable[[Tensor], Any], x: Tensor, **options: Any) -> Any:
        states = iter((0.0, 1e-12))
        return checkpoint(lambda x: layer(x + next(states)), x, **options)

    monkeypatch.setattr(passing, "checkpoint", drift)
    with pytest.raises(AssertionError):
        recomputes(Case("state.injection: add"), tmp_path)


def test_a_resumed_run_without_its_moments_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutation: the optimizer starts anew."""
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda *_: None)
    with pytest.raises(AssertionError):
        resumes(Case("state.injection: add"), tmp_path)


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
    assert_document_has(DOCUMENT, OUTCOMES, ROWS, COLUMNS, begin=BEGIN, end=END)
