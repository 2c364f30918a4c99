"""Optimiser, learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from moeut.blocks.own import of_one_repeat
from moeut.recurrence.stack import DepthStack
from runners.config.schema import TrainConfig


class Optimizer(Protocol):
    """What updates the parameters: an optimiser of torch, or several that step as one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters (``params``) with their learning rate (``lr``), which can be set."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Do one update."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that updates keep, in types that ``torch.load`` reads."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""


class _Direct:
    """An Adam of torch on a CPU whose update is the fused operation and little besides.

    torch's own update sorts its tensors anew each time, and asks its compiler, whose import takes a
    second of every process. States, their names and all numbers are the same.
    """

    param_groups: list[dict[str, Any]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters."""
        self._kept: dict[int, list[list[torch.Tensor]]] = {}
        _uncompiled(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        _uncompiled(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return what torch's optimiser returns."""
        state: dict[str, Any] = _uncompiled(torch.optim.Optimizer.state_dict)(self)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of this or of torch's optimiser."""
        self._kept = {}
        _uncompiled(torch.optim.Optimizer.load_state_dict)(self, state_dict)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Do one update."""
        for index, group in enumerate(self.param_groups):
            parameters, gradients, *states = self._tensors(index, group)
            if not parameters:
                continue
            torch._foreach_add_(states[-1], 1)
            decoupled = group["decoupled_weight_decay"]
            (torch._fused_adamw_ if decoupled else torch._fused_adam_)(
                *(parameters, gradients, *states),
                amsgrad=group["amsgrad"],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )

    step.hooked = True  # type: ignore[attr-defined]  # or torch would wrap it for its profiler

    def _tensors(self, index: int, group: dict[str, Any]) -> list[list[torch.Tensor]]:
        """Return the lists that the operation takes, of the parameters that have a gradient."""
        if index in self._kept:
            parameters, *states = self._kept[index]
            gradients = [parameter.grad for parameter in parameters]
            if all(gradient is not None for gradient in gradients):
                return [parameters, gradients, *states]  # type: ignore[list-item]
        lists: list[list[torch.Tensor]] = [[] for _ in range(6)]
        self._init_group(group, *lists)  # type: ignore[attr-defined]
        if len(lists[0]) == len(group["params"]):
            self._kept[index] = [lists[0], *lists[2:]]
        return lists


class DirectAdam(_Direct, torch.optim.Adam):  # type: ignore[misc]
    """Adam (Kingma and Ba 2015, arXiv 1412.6980)."""


class DirectAdamW(_Direct, torch.optim.AdamW):  # type: ignore[misc]
    """Adam whose weight decay is decoupled (Loshchilov and Hutter 2019, arXiv 1711.05101)."""


def _uncompiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of torch's optimiser without what keeps its compiler out, and imports it."""
    return getattr(method, "__wrapped__", method)


def learning_rate(config: TrainConfig, step: int, *, d_model: int) -> float:
    """Return the learning rate of an update.

    Args:
        config: schedule, peak and warm-up.
        step: the update, counted from 1.
        d_model: width of the model; noam divides by its square root.

    The warm-up is linear from 0 and reaches the peak at ``warmup_steps``. ``linear`` and ``cosine``
    reach ``final_learning_rate_ratio`` of the peak at the last step. ``cosine_paper`` is what
    MoEUT's training code computes: ``CosineAnnealingLR`` of length ``steps``, stepped with the
    updates done since the warm-up ended, so that it stops ``warmup_steps`` before its end
    (RobertCsordas/moeut_training_code, ``framework/task/task.py``). ``noam`` is
    ``factor / sqrt(d_model) * min(step**-0.5, step * warmup_steps**-1.5)`` (Vaswani et al. 2017).
    ``stable`` stays at the peak until ``decay_steps`` updates are left, over which it falls in a
    line to the floor, reached at the last step (warm-up-stable-decay; Hu et al. 2024,
    arXiv 2404.06395, whose fall is exponential; the line is that of Hägele et al. 2024,
    arXiv 2405.18392).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "noam":
        rise = step * max(warmup, 1) ** -1.5
        return peak / math.sqrt(d_model) * min(step**-0.5, rise)
    if step < warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "cosine_paper":
        done = max(step - 1 - warmup, 0) / config.steps
    elif config.decay_steps is not None:  # stable, the only schedule that has it
        done = max(step - (config.steps - config.decay_steps), 0) / config.decay_steps
    else:
        done = (step - warmup) / max(config.steps - warmup, 1)
    straight = config.schedule in ("linear", "stable")
    share = 1.0 - done if straight else 0.5 * (1.0 + math.cos(math.pi * done))
    floor = config.final_learning_rate_ratio
    return peak * (floor + (1.0 - floor) * share)


def scaled_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the parameters that train, in groups of one ``scale`` of the learning rate.

    A layer that a stack applies ``depth.repeats`` times has 1 / sqrt(repeats), since its gradient
    is a sum over them; what only one of the repeats uses, and every other parameter, has 1. The
    decay of AdamW is multiplied by the rate, so it is scaled as well.
    """
    scales: dict[torch.nn.Parameter, float] = {}
    for stack in model.modules():
        if not isinstance(stack, DepthStack) or stack.options.is_recursive:
            continue
        depth = stack.options.depth
        for index, layer in enumerate(stack.layers):
            if depth.is_in_group(index):
                shared = set(layer.parameters()) - of_one_repeat(layer)
                scales.update(dict.fromkeys(shared, depth.repeats**-0.5))
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(scales.get(parameter, 1.0), []).append(parameter)
    return [{"params": group, "scale": scale} for scale, group in groups.items()]


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give each group of parameters the learning rate, times its ``scale`` if it has one.

    On a GPU it is rounded to float32, in which a CUDA graph has to read it.
    """
    for group in optimizer.param_groups:
        scaled = rate * group.get("scale", 1.0)
        on_gpu = any(parameter.is_cuda for parameter in group["params"][:1])
        group["lr"] = float(np.float32(scaled)) if on_gpu else scaled


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimiser of a model's parameters that train.

    Adam takes weight decay as L2 penalty. The fused implementation of both Adams is bitwise
    reproducible, and on a CPU several times faster for small models than the loop over parameters.
    """
    if config.shared_rate == "root":
        groups = scaled_groups(model)
    else:
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    adam = options | {"betas": tuple(config.betas), "eps": config.epsilon, "fused": True}
    if config.optimizer == "muon":
        from runners.training.muon import muon_and_adamw

        return muon_and_adamw(model, groups, adam=adam, **options)
    on_cpu = all(_is_plain(p) for group in groups for p in group["params"])
    kinds = (
        {"adam": DirectAdam, "adamw": DirectAdamW}
        if on_cpu
        else {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    )
    return kinds[config.optimizer](groups, **adam)


def members(optimizer: Optimizer) -> dict[str, torch.optim.Optimizer]:
    """Return the optimisers of torch that step as one, by their names; or the only one."""
    found: dict[str, torch.optim.Optimizer] = getattr(optimizer, "optimizers", {"": optimizer})
    return found


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Return an optimiser's parameters in the order of its state's numbers."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_plain(parameter: torch.nn.Parameter) -> bool:
    """Return whether a parameter is a float32 tensor on a CPU, no piece of a sharded one."""
    is_whole = not hasattr(parameter, "full_tensor")
    return is_whole and parameter.device.type == "cpu" and parameter.dtype == torch.float32


def start_average(model: torch.nn.Module, config: TrainConfig) -> AveragedModel | None:
    """Return a copy of a model whose parameters follow its own, or None without ``train.ema``.

    Each ``update_parameters`` does average ← m · average + (1 - m) · weights, from the weights that
    the model has now. Buffers are those of the model.
    """
    if not config.ema:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    average.update_parameters(model)  # the first one copies
    return average


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Return the L2 norm of all gradients together, a tensor of shape ()."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    # The norm of a sharded model is a DTensor of partial sums; full_tensor adds them up.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def clip_gradients(
    parameters: Iterable[torch.nn.Parameter], *, norm: torch.Tensor, largest: float | None
) -> None:
    """Scale the gradients, whose global norm is ``norm``, so that it is at most ``largest``."""
    if largest is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm, foreach=True)
