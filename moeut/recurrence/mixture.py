"""Mixture-of-Recursions: a router decides which tokens each repeat works on (arXiv 2507.10524).

With x a token's state before a repeat, b(x) what the group makes of it (its residuals included) and
R repeats:

=================  ===========================================================================
kind               what becomes of a token
=================  ===========================================================================
``expert_choice``  repeat r takes, of the tokens that repeat r - 1 took, the part with the largest
                   gates g = α·f(w_r·x): x ← x + g·b(x); the others keep x
``token_choice``   before the first repeat, each token chooses a depth d, the largest of
                   p = α·softmax(W x): it goes through repeats 0 … d, and ends as
                   x + p_d·b^{d+1}(x), with the x of before them all
=================  ===========================================================================

Tokens that take part see one another alone, unless the stack shares keys. Top-k over a row looks at
tokens that are yet to be predicted: in a causal model that is fair in training alone, since a loss
teaches a threshold to decide as the top-k did, for each token by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeut.blocks import masks
from moeut.blocks.roles import Roles, constant, linear
from moeut.blocks.routing import router_logits
from moeut.options import derived, require, require_finite
from moeut.recurrence.controller import (
    Controller,
    ControllerOptions,
    Pass,
    Run,
    Step,
    Verdict,
)
from moeut.recurrence.schedule import Depth, Place


@dataclass(frozen=True, kw_only=True)
class MixtureOptions(ControllerOptions):
    """What both kinds have."""

    temperature: float = 1.0
    """What a state is divided by before its router reads it."""
    gating: Literal["weighted", "additive"] = "weighted"
    """Whether the result of the group is multiplied by the gate before it is added; ``additive``:
    it is not, so that the language model's loss teaches the router nothing."""
    z_loss: float = 0.0
    """Weight of the mean squared log-sum of the exponentiated logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "z_loss")
        ok = 0.0 < self.temperature < math.inf
        require(ok, "temperature", self.temperature, "must be a finite number above 0")

    def hides_others(self) -> bool:
        """Return that they do."""
        return True

    def gated(self, begun: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        """Return what a token ends a repeat with that began it with ``begun``, (B, T, D) each."""
        if self.gating == "weighted":
            x = x * gate.unsqueeze(-1).to(x.dtype)
        return begun + x

    def logits(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the logits (B, T, N) of states x (B, T, D) by a router (N, D)."""
        return router_logits(x / self.temperature, weight)


# --- expert choice ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ExpertChoice(MixtureOptions):
    """Each repeat chooses its tokens, of those that the repeat before it chose."""

    kind: ClassVar[str] = "expert_choice"
    capacity: tuple[float, ...] = derived()
    """Part of a row's tokens that each repeat takes, never more than the one before; left out:
    (R - r) / R in repeat r of R."""
    gate: Literal["sigmoid", "tanh", "none"] = "sigmoid"
    """What makes a gate of a logit."""
    alpha: float = 0.1
    """Factor on sigmoid and tanh."""
    sampling: Literal["loss", "router", "none"] = "loss"
    """What learns to decide as the top-k does, for each token by itself: the router itself, by a
    cross entropy beside the loss; another ``router``, which changes nothing else; or nothing."""
    sampling_loss: float = 0.001
    """Weight of that cross entropy."""
    evaluate: Literal["top_k", "threshold"] = "top_k"
    """Who takes part in evaluation: as in training; or each token whose logit is at least 0, of the
    other router if there is one, which looks at no other token and so can decode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "sampling_loss", "alpha")
        given: tuple[float, ...] | None = self.capacity
        if given is not None:
            falls = all(0.0 < part <= 1.0 for part in given) and sorted(given)[::-1] == list(given)
            said = "must be parts above 0 and at most 1, none above the one before"
            require(bool(given) and falls, "capacity", list(given), said)
        said = "nothing teaches it; expected sampling=loss or sampling=router"
        ok = self.evaluate == "top_k" or self.sampling != "none"
        require(ok, "evaluate", self.evaluate, said)

    def parts(self, repeats: int) -> list[float]:
        """Return the part of a row that each repeat takes; later ones as the last."""
        given: tuple[float, ...] | None = self.capacity
        parts = list(given or ((repeats - r) / repeats for r in range(repeats)))
        return [parts[min(repeat, len(parts) - 1)] for repeat in range(repeats)]

    def shares(self, repeats: int) -> list[float]:
        """Return the part of the tokens that each repeat computes."""
        return self.parts(repeats)

    def build_in(self, d_model: int, depth: Depth) -> Controller:
        """Return the controller with its routers."""
        return ExpertChoiceController(self, d_model, depth.repeats)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of the routers for one token."""
        return d_model * (2 if self.sampling == "router" else 1)


class ExpertChoiceController(Controller):
    """The routers of each repeat, ``routers`` (1, D) and, if they sample, ``samplers`` (1, D)."""

    def __init__(self, options: ExpertChoice, d_model: int, repeats: int) -> None:
        super().__init__()
        self.options, self.repeats = options, repeats
        self.routers = _rows(repeats, d_model)
        self.samplers = _rows(repeats, d_model) if options.sampling == "router" else None
        if options.evaluate == "top_k":
            self.refuses_cache = (
                "the largest gates of a row are known at its end; "
                "halting.evaluate=threshold decides for each token by itself"
            )

    def roles(self) -> Roles:
        """Return the roles of the routers."""
        role = linear(self.routers[0].shape[1], 1)
        names = ["routers"] if self.samplers is None else ["routers", "samplers"]
        return {f"{name}.{i}": role for name in names for i in range(self.repeats)}

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass."""
        return ExpertChoiceRun(self, about)


class ExpertChoiceRun(Run):
    """One pass of expert choice."""

    def __init__(self, controller: ExpertChoiceController, about: Pass) -> None:
        self.controller, self.options, self.about = controller, controller.options, about
        self.parts = self.options.parts(controller.repeats)
        x = about.embedded
        everyone = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        self.active = everyone if about.real is None else about.real
        self.columns: Tensor | None = None
        self.begun = x
        self.gate = x.new_ones(x.shape[:2])
        self.repeats = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        self.losses: list[Tensor] = []
        self.agreements: list[Tensor] = []

    def before(self, place: Place, step: Step) -> Step | None:
        """Choose, where a repeat begins, the tokens that take part."""
        if place.is_first:
            assert place.repeat is not None
            if self.about.may_end and place.repeat and not bool(self.active.any()):
                return None
            self._choose(step.x, min(place.repeat, self.controller.repeats - 1))
        return step._replace(active=self.active, columns=self.columns, is_alone=True)

    def _choose(self, x: Tensor, repeat: int) -> None:
        options, controller = self.options, self.controller
        logits = options.logits(x, controller.routers[repeat]).squeeze(-1)  # (B, T)
        deciding = logits
        if controller.samplers is not None:  # reads the state, and changes nothing in it
            deciding = router_logits(x.detach(), controller.samplers[repeat]).squeeze(-1)
        self.begun, self.gate = x, self._gate(logits)
        candidates = self.active
        if controller.training or options.evaluate == "top_k":
            self._take_largest(candidates, self.parts[repeat])
        else:
            self.active = candidates & (deciding >= 0)
        self.repeats = self.repeats + self.active
        self._learn(logits, deciding, candidates)

    def _gate(self, logits: Tensor) -> Tensor:
        if self.options.gate == "none":
            return logits
        squashed = logits.sigmoid() if self.options.gate == "sigmoid" else logits.tanh()
        return squashed * self.options.alpha

    def _take_largest(self, candidates: Tensor, part: float) -> None:
        """Take the part of each row's real tokens with the largest gates, one at least.

        A document in a row of several is what it is alone, so that it is treated as a row.
        """
        gates = self.gate.detach().masked_fill(~candidates, -math.inf)
        length = gates.shape[1]
        if self.about.document_numbers is not None:
            rank, tokens = _in_documents(gates, self.about.document_numbers, self.about.real)
            wanted = (tokens.double() * part).long().clamp_min(1)
            self.active = candidates & (rank < wanted)
            return
        if self.about.real is None:
            columns = gates.topk(max(1, int(part * length)), dim=1, sorted=False).indices
            self.columns = columns.sort(dim=1).values
            self.active = torch.zeros_like(candidates).scatter(1, self.columns, True)
            return
        wanted = (self.about.real.sum(dim=1, keepdim=True).double() * part).long().clamp_min(1)
        rank = gates.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        self.active = candidates & (rank < wanted)

    def _learn(self, logits: Tensor, deciding: Tensor, candidates: Tensor) -> None:
        options, about = self.options, self.about
        chosen = self.active.to(deciding.dtype)
        if options.sampling != "none":
            missed = F.binary_cross_entropy_with_logits(deciding, chosen, reduction="none")
            self.losses.append(about.mean(missed, among=candidates) * options.sampling_loss)
            agrees = ((deciding >= 0) == self.active).to(deciding.dtype)
            self.agreements.append(about.mean(agrees, among=candidates).detach())
        if options.z_loss:
            self.losses.append(about.mean(logits.square(), among=candidates) * options.z_loss)

    def after(self, place: Place, step: Step, x: Tensor) -> Tensor:
        """Add, where a repeat ends, what it has made of the tokens that took part."""
        if not place.is_last:
            return x
        moved = self.options.gated(self.begun, x, self.gate)
        return torch.where(self.active.unsqueeze(-1), moved, self.begun)

    def finish(self, x: Tensor) -> Verdict:
        """Return the state, the loss, each token's repeats, and how often the sampler agrees."""
        record = {"repeats": self.repeats}
        if self.agreements:
            record["agreement"] = torch.stack(self.agreements).mean()
        return Verdict(x, _total(self.losses), record)


def _in_documents(
    gates: Tensor, document_numbers: Tensor, real: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each token's rank in its document by falling gates, and the document's real tokens.

    All are (B, T); ``document_numbers`` never fall along a row.
    """
    begin = torch.arange(gates.shape[1], device=gates.device)
    begin = begin - masks.positions_in_documents(document_numbers)  # its first column names it
    order = gates.argsort(dim=1, descending=True, stable=True)
    # Sorted by document again, each has the columns that it had before.
    order = order.gather(1, begin.gather(1, order).argsort(dim=1, stable=True))
    rank = order.argsort(dim=1) - begin
    counted = torch.ones_like(begin) if real is None else real.long()
    return rank, torch.zeros_like(begin).scatter_add(1, begin, counted).gather(1, begin)


# --- token choice -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokenChoice(MixtureOptions):
    """Each token chooses how many repeats it goes through, before the first of them."""

    kind: ClassVar[str] = "token_choice"
    gate: Literal["softmax", "sigmoid"] = "softmax"
    """What makes gates of the logits of the depths."""
    alpha: float = 1.0
    """Factor on them."""
    balancing: Literal["loss", "bias", "none"] = "loss"
    """What keeps all depths in use: a ``loss``, R · Σ over depths of mean gate · share of tokens;
    or a ``bias`` on the gates that tokens choose by, which follows the shares after each update of
    the weights, without gradient (loss-free balancing, arXiv 2408.15664)."""
    balancing_loss: float = 0.1
    """Weight of the loss."""
    balance_over: Literal["row", "batch"] = "row"
    """Tokens that means and shares are over: of one row, so that its loss does not depend on what
    else is in the batch; or of the batch, as published."""
    bias_rate: float = 0.001
    """How far the bias goes after each update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite(self, "alpha", "balancing_loss", "bias_rate")

    def shares(self, repeats: int) -> list[float]:
        """Return the part of the tokens that each repeat computes, if all depths are used alike."""
        return [(repeats - r) / repeats for r in range(repeats)]

    def build_in(self, d_model: int, depth: Depth) -> Controller:
        """Return the controller with its router."""
        return TokenChoiceController(self, d_model, depth.repeats)

    def macs(self, d_model: int) -> int:
        """Return the multiply-accumulates of the router for one token and depth."""
        return d_model


class TokenChoiceController(Controller):
    """The router, ``weight`` (R, D), and ``bias`` (R,) if that balances, which has no gradient."""

    def __init__(self, options: TokenChoice, d_model: int, repeats: int) -> None:
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(torch.empty(repeats, d_model))
        self.bias = None
        if options.balancing == "bias":
            self.bias = nn.Parameter(torch.empty(repeats), requires_grad=False)
        # No buffer: ranks would make it that of the first, and a checkpoint would keep it.
        self.counts: Tensor | None = None
        """(R,) tokens that chose each depth since the last update of the weights."""

    def roles(self) -> Roles:
        """Return the roles of router and bias."""
        repeats, d_model = self.weight.shape
        roles = {"weight": linear(d_model, repeats)}
        return roles if self.bias is None else roles | {"bias": constant(0.0)}

    def begin(self, about: Pass) -> Run:
        """Return the run of a pass."""
        return TokenChoiceRun(self, about)

    def count(self, depth: Tensor, real: Tensor | None) -> None:
        """Note what tokens chose, ``depth`` (B, T)."""
        chosen = depth if real is None else depth[real]
        counts = torch.bincount(chosen.flatten(), minlength=self.weight.shape[0])
        self.counts = counts if self.counts is None else self.counts + counts

    def counted(self) -> Tensor | None:
        """Return (R,) what has been noted since the last update; None: there is nothing to do."""
        if self.bias is None:
            return None
        none = torch.zeros(self.bias.shape, dtype=torch.int64, device=self.bias.device)
        return none if self.counts is None else self.counts

    @torch.no_grad()
    def after_update(self, counts: Tensor) -> None:
        """Draw the bias of each depth to what would make it as frequent as the others.

        ``counts`` (R,) are those of the whole batch, over all ranks.
        """
        assert self.bias is not None
        shares = counts / counts.sum().clamp_min(1)
        towards = (shares.mean() - shares).sign().to(self.bias.dtype)
        if hasattr(self.bias, "device_mesh"):  # a parameter in pieces takes its own piece
            from torch.distributed.tensor import distribute_tensor

            pieces: Any = self.bias
            towards = distribute_tensor(towards, pieces.device_mesh, pieces.placements)
        self.bias.add_(towards, alpha=self.options.bias_rate)
        self.counts = None


class TokenChoiceRun(Run):
    """One pass of token choice."""

    def __init__(self, controller: TokenChoiceController, about: Pass) -> None:
        self.controller, self.options, self.about = controller, controller.options, about
        self.begun = about.embedded
        self.result = about.embedded
        shape, device = self.begun.shape[:2], self.begun.device
        self.depth = torch.zeros(shape, dtype=torch.int64, device=device)
        self.gate = self.begun.new_ones(shape)
        self.active = self.depth == 0
        self.loss: Tensor | None = None

    def before(self, place: Place, step: Step) -> Step | None:
        """Choose the depths, before the first repeat, and who takes part in this one."""
        if place.is_first:
            if place.repeat == 0:
                self._choose(step.x, place.num_repeats)
            assert place.repeat is not None
            self.active = self.depth >= place.repeat
            if self.about.real is not None:
                self.active = self.active & self.about.real
            if self.about.may_end and place.repeat and not bool(self.active.any()):
                return None
        return step._replace(active=self.active, is_alone=True)

    def _choose(self, x: Tensor, num_repeats: int) -> None:
        options, controller = self.options, self.controller
        logits = options.logits(x, controller.weight)  # (B, T, R)
        p = logits.softmax(dim=-1) if options.gate == "softmax" else logits.sigmoid()
        p = p * options.alpha
        biased = p if controller.bias is None else p + controller.bias.to(p.dtype)
        depth = biased.detach().argmax(dim=-1)
        self.gate = p.gather(-1, depth.unsqueeze(-1)).squeeze(-1)
        if controller.training:
            if controller.bias is not None and controller.is_counting:
                controller.count(depth, self.about.real)
            self.loss = self._penalty(logits, p, depth)
        self.depth = depth.clamp_max(num_repeats - 1)
        self.begun = self.result = x

    def _penalty(self, logits: Tensor, p: Tensor, depth: Tensor) -> Tensor | None:
        options, about = self.options, self.about
        losses = []
        if options.balancing == "loss":
            repeats = p.shape[-1]
            chosen = F.one_hot(depth, repeats).to(p.dtype)  # (B, T, R)
            # R · Σ mean(p) · share, with the share of a depth weighing p at each token.
            share = about.token_mean(chosen, by_row=options.balance_over == "row")
            weighed = (p * share).sum(dim=-1) * repeats  # (B, T)
            if options.balance_over == "row":
                mean = about.mean(weighed)
            else:
                mean = about.token_mean(weighed.unsqueeze(-1), by_row=False).sum()
            losses.append(mean * options.balancing_loss)
        if options.z_loss:
            losses.append(about.mean(logits.logsumexp(dim=-1).square()) * options.z_loss)
        return _total(losses)

    def after(self, place: Place, step: Step, x: Tensor) -> Tensor:
        """Let tokens end, where a repeat ends, that chose it as their last."""
        if place.is_last:
            ends = self.active & (self.depth == place.repeat)
            moved = self.options.gated(self.begun, x, self.gate)
            self.result = torch.where(ends.unsqueeze(-1), moved, self.result)
        return x

    def finish(self, x: Tensor) -> Verdict:
        """Return what each token ended with, the loss, and its repeats."""
        repeats = self.depth + 1
        if self.about.real is not None:
            repeats = repeats * self.about.real
        return Verdict(self.result, self.loss, {"repeats": repeats})


def _total(losses: list[Tensor]) -> Tensor | None:
    return torch.stack(losses).sum() if losses else None


def _rows(count: int, d_model: int) -> nn.ParameterList:
    return nn.ParameterList(nn.Parameter(torch.empty(1, d_model)) for _ in range(count))
