"""A small model with one mechanism, for the tests of what holds of every mechanism."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from mechanism_cases import MECHANISMS, Tree, attention, configure, feed_forward
from torch import Tensor
from torch.nn import functional as F

from moeut.config import ModelConfig
from moeut.models import build
from moeut.recurrence.controller import Step
from moeut.recurrence.exit_rules import ExitRule
from moeut.recurrence.passing import Passing
from moeut.recurrence.row_depth import RowDepth
from moeut.recurrence.schedule import Place

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
    "train.objective: every repeat": (INJECTS, {"read_repeats": [0, 1, -1]}),
    "exit: latent_diff": (INJECTS, {}),
    "exit: kl": (INJECTS, {}),
}
"""Options of the model, and of its call, for what is decided in training or evaluation."""
THRESHOLDS = {"latent_diff": 0.7, "kl": 0.3}
"""Of the rules of exits: some tokens leave, others go on."""
ROWS = [*MECHANISMS, *WAYS]
COLUMNS = {
    "gradient": "gradient",
    "checkpointing": "checkpointing",
    "batch": "batch",
    "cache": "cache",
    "resuming": "resuming",
    "graph": "compiled",
    "ranks": "two ranks",
    "mutation": "mutation fails",
}
"""Of the table of outcomes: what a test calls it, and its head."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "recurrence.md"
BEGIN = "<!-- properties: written by tests/moeut/test_properties.py -->"
END = "<!-- end of properties -->"


def assert_near(found: Iterable[Tensor], wanted: Iterable[Tensor], bound: float) -> None:
    """Compare tensors pair by pair: nowhere are two apart by more than ``bound``."""
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        apart = float((one - other).detach().abs().max())
        assert apart <= bound, f"{apart:.1e} apart"


def merge(one: Tree, other: Tree) -> Tree:
    """Return the options of two trees.

    Raises:
        ValueError: they give an option different values.
    """
    merged = dict(one)
    for key, value in other.items():
        old = merged.setdefault(key, value)
        are_trees = isinstance(old, dict) and isinstance(value, dict)
        if are_trees and old.get("kind") == value.get("kind"):
            merged[key] = merge(old, value)
        elif old != value:
            raise ValueError(f"{key}: {old} and {value}")
    return merged


def combine(names: Sequence[str]) -> tuple[Tree, Tree]:
    """Return the options of a model with some mechanisms, and those of its call.

    Raises:
        ValueError: they exclude one another.
    """
    options: Tree = {}
    call: Tree = {}
    for name in names:
        more, of_call = WAYS.get(name, (MECHANISMS.get(name, {}), {}))
        options = merge(options, more)
        if call.keys() & of_call.keys():
            raise ValueError(f"{name}: its call has other options")
        call |= of_call
    deciding = [name for name in names if name.startswith(("exit: ", "halting: ", "train.repeats"))]
    if len(deciding) > 1:
        raise ValueError(f"{deciding}: one decides how deep a token goes")
    return options, call


def describe(options: Tree, *, form: str | None = None, small: bool = False) -> ModelConfig:
    """Return the config of a model of experts with these options."""
    heads = attention("switch_head")["attention"] | {"head_size": 4}  # the least that rotates
    options = BLOCKS | ({"d_model": 4, "attention": heads} if small else {}) | options
    repeats = 2 if small else 3
    options["depth"] = {"group": 1, "repeats": repeats, **options.get("depth", {})}
    return configure(form or "decoder_lm", options)


def share_out(names: Sequence[str]) -> list[list[str]]:
    """Return groups of mechanisms that fit in one model, each mechanism in one of few groups."""
    groups: list[list[str]] = []
    # More layers cost most, so that they come together; what decides comes late in the table.
    several = [name for name in names if name.startswith("depth.")]
    for name in [*several, *(name for name in reversed(names) if name not in several)]:
        for group in sorted(groups, key=len):
            try:
                describe(combine([*group, name])[0])
            except ValueError:
                continue
            group.append(name)
            break
        else:
            groups.append([name])
    return groups


def move(model: torch.nn.Module) -> None:
    """Move all weights: tokens halt at different repeats, and what starts at zero acts."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for each, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.add_(noise * (5.0 if "halting" in each else 0.2))


class Case:
    """A float64 model with its mechanisms, and how it is called: in training, with padding.

    A ``small`` one, for what calls it hundreds of times, has width 4, two repeats, and two rows.
    """

    def __init__(self, *names: str, form: str | None = None, small: bool = False) -> None:
        options, self.call = combine(names)
        self.config = describe(options, form=form, small=small)
        self.tokens, self.lengths = TOKENS, LENGTHS
        if small:
            self.tokens, self.lengths = TOKENS[1:, :3], LENGTHS[1:] - 1
        torch.manual_seed(0)
        self.model: Any = build(self.config).double().train()
        move(self.model)
        for name in names:
            if name.startswith("exit: "):
                criterion: Any = name.removeprefix("exit: ")
                self.model.exit_rule = ExitRule(
                    criterion=criterion, threshold=THRESHOLDS[criterion]
                )
                self.model.eval()

    def own(self) -> list[str]:
        """Return the names of the parameters that a model without the mechanism does not have."""
        plain = Case(form=self.config.form, small=self.config.d_model == 4).model
        shapes = {name: weight.shape for name, weight in plain.named_parameters()}
        named = self.model.named_parameters()
        return [name for name, weight in named if shapes.get(name) != weight.shape]

    @property
    def has_cache(self) -> bool:
        return bool(self.config.form == "decoder_lm")

    def run(
        self, model: Any = None, rows: slice = slice(None), width: int | None = None, **options: Any
    ) -> Any:
        """Return the output for some rows in so many columns."""
        width = width or self.tokens.shape[1]
        more = (0, width - self.tokens.shape[1])
        tokens = F.pad(self.tokens, more, value=7)[rows]
        real = (torch.arange(width) < self.lengths[:, None])[rows]
        call = dict(self.call)
        if "row_depth" in call:
            depths = [part[-len(self.tokens) :] for part in call["row_depth"]]
            if depths[0].dim() == 2:
                depths = [F.pad(part[:, : self.tokens.shape[1]], more) for part in depths]
            call["row_depth"] = RowDepth(*(part[rows] for part in depths))
        mask = {"padding_mask" if self.has_cache else "source_mask": real}
        torch.manual_seed(5)
        call_it = self.model if model is None else model
        return call_it(tokens, **mask, **call, **options)

    def real(self, logits: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return the logits (N, V) at real tokens."""
        return logits[(torch.arange(logits.shape[1]) < self.lengths[:, None])[rows]]

    def read(self, output: Any, rows: slice = slice(None)) -> list[Tensor]:
        """Return the log-probabilities (N, V) of real tokens, of each state that is read out."""
        read = [output.logits, *output.repeat_logits]
        return [self.real(each, rows).log_softmax(-1) for each in read]

    def loss(self, output: Any, rows: slice = slice(None)) -> Tensor:
        """Return a smooth function of the logits at real tokens, and the auxiliary loss."""
        parts = [each[:, 0].sum() for each in self.read(output, rows)]
        return torch.stack(parts).sum() + output.auxiliary_loss

    def gradients(self, **options: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return the output and the gradient of each parameter."""
        self.model.zero_grad()
        output = self.run(**options)
        self.loss(output).backward()
        return output, {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}


def hold_truncated(monkeypatch: Any) -> None:
    """Let applications without gradient give what they gave in the first pass.

    With them held, what the gradient leaves out is constant in the function too.
    """
    apply, first = Passing.apply, {}

    def held(passing: Passing, place: Place, step: Step, **options: Any) -> Tensor:
        if not options.get("without_gradient"):
            return apply(passing, place, step, **options)
        if place.application not in first:
            result = apply(passing, place, step, **options)
            first[place.application] = result, passing.records[-1]
            return result
        result, record = first[place.application]
        passing.records.append(record)
        return result

    monkeypatch.setattr(Passing, "apply", held)
