"""How a model runs: in which precision, and spread over ranks by DDP or FSDP2's ``fully_shard``.

With DDP every rank has all weights, and gradients are averaged during the backward pass. With FSDP
weights, gradients and optimiser are cut along their first dimension, one piece on each rank, and
weights are gathered where they are used. Weights are always saved in one piece
(``model.safetensors``), the optimiser's tensors in pieces by torch's distributed checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from moeut.models import FORMS
from moeut.recurrence.controller import NoHalting
from runners.config.schema import TrainConfig
from runners.process.ranks import World
from runners.training.optimization import members, parameters_of

ONE_BY_ONE: dict[str, Any] = {"max_fusion_size": 1}
"""Options of the compiler on a CPU.

They avoid a bug of PyTorch 2.13: a fused kernel reads a buffer before another part of it has
scattered into that buffer. The gradient of a router with a balance loss is such a buffer, and loses
what comes through the choice of experts."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a model is called, in training and in scoring alike.

    Args:
        device: where the model is.
        precision: ``bfloat16`` for PyTorch's mixed precision; anything else changes nothing.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def is_sharded(model: Any) -> bool:
    """Tell whether each rank holds only a part of the model's weights."""
    return hasattr(model, "set_requires_gradient_sync")  # FSDP's class takes long to import


def spread(model: Any, config: TrainConfig, world: World, *, has_one_shape: bool = False) -> Any:
    """Return the callable that runs ``model`` on this rank, compiled if the config says so.

    Args:
        model: initialised alike on every rank, on the device. Under FSDP its parameters are
            replaced, so that an optimiser has to be made afterwards.
        config: the ``train`` section.
        world: this rank's place.
        has_one_shape: whether all batches have one shape, to which the compiler can specialise.
    """
    call = model
    if world.size > 1 and config.parallel == "fsdp":
        from runners.training.sharding import shard

        shard(model, world)
    elif world.size > 1:
        skips = may_skip_parameters(model)
        call = DistributedDataParallel(
            model, gradient_as_bucket_view=True, find_unused_parameters=skips
        )
    if config.compile:
        on_cpu = next(model.parameters()).device.type == "cpu"
        call = torch.compile(
            call,
            dynamic=None if has_one_shape else True,
            options=ONE_BY_ONE if on_cpu else None,
        )
    return call


def shard_like(model: Any, other: Any, world: World) -> None:
    """Leave each rank as much of a model's weights as it has of another's."""
    if is_sharded(other):
        from runners.training.sharding import shard

        shard(model, world)


def may_skip_parameters(model: Any) -> bool:
    """Return whether a pass may leave parameters without a gradient, which ranks then look for.

    Those of a repeat's own where a step is less deep, or where no token is left; and those of a
    controller that decides who takes part.
    """
    config = getattr(model, "config", None)
    stacks = config.stacks.values() if config is not None else ()
    return any(
        not stack.own.is_nothing or not isinstance(stack.halting, NoHalting) for stack in stacks
    )


@contextlib.contextmanager
def gradients_sent(call: Any, is_last: bool) -> Iterator[None]:
    """Accumulate a part's gradients here, and send them between the ranks with the last part's."""
    module = getattr(call, "_orig_mod", call)
    if isinstance(module, DistributedDataParallel) and not is_last:
        with module.no_sync():
            yield
    else:
        if is_sharded(module):
            module.set_requires_gradient_sync(is_last)
        yield


# --- weights ----------------------------------------------------------------------------


def full_weights(model: Any, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """Return copies of the whole weights on the CPU; every rank has to call it.

    A rank with ``keep`` false takes part in gathering them and returns none.
    """
    weights = {}
    for name, value in model.state_dict().items():
        # A sharded model has its buffers whole on every rank.
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        if keep:
            weights[name] = whole.detach().to("cpu", copy=True)
    return weights


def load_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Load whole weights into a model, of which each rank keeps its part.

    Raises:
        ValueError: the names of the weights are not those of the model.
    """
    if not is_sharded(model):
        model.load_state_dict(weights)
        return
    from runners.training.sharding import part_of

    own = model.state_dict()
    if own.keys() != weights.keys():
        raise ValueError(f"weights {sorted(own.keys() ^ weights.keys())[:3]}: not in both")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(part_of(weights[name], like=value))


def whole_copy(model: Any, device: torch.device, *, keep: bool) -> Any:
    """Return a copy of a sharded model in one piece where ``keep``; every rank has to call it."""
    weights = full_weights(model, keep=keep)
    if not keep:
        return None
    with torch.device("meta"):  # draws no random numbers
        copy = FORMS[model.config.form](model.config)
    copy.load_state_dict(weights, assign=True)
    return copy.to(device)


# --- optimiser --------------------------------------------------------------------------


def optimizer_state(model: Any, optimizer: Any) -> dict[str, Any]:
    """Return the optimiser's state, without the tensors of a sharded one, saved apart."""
    state = optimizer.state_dict()
    return _without_tensors(state) if is_sharded(model) else state


def _without_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimiser, or those of several by their names, with groups alone."""
    if "param_groups" in state:
        return state | {"state": {}}
    return {name: _without_tensors(each) for name, each in state.items()}


def load_optimizer_state(model: Any, optimizer: Any, state: dict[str, Any], shards: Path) -> None:
    """Load what ``optimizer_state`` returned, and the pieces in ``shards`` if there are any.

    The state may have been saved whole or in pieces, by any number of ranks; each rank takes the
    parts that it needs.
    """
    if not is_sharded(model) and not shards.is_dir():
        optimizer.load_state_dict(state)
        return
    from runners.training.sharding import load_shards, optimizer_tensors, part_of

    optimizer.load_state_dict(_without_tensors(state))
    tensors = optimizer_tensors(model, optimizer)
    if shards.is_dir():
        load_shards(shards, tensors)
        return
    for name, each in members(optimizer).items():
        saved = (state[name] if name else state)["state"]
        for index, parameter in enumerate(parameters_of(each)):
            for key, value in saved.get(index, {}).items():
                own = each.state[parameter][key]
                own.copy_(part_of(value, like=own))
