"""A model spread over ranks: DistributedDataParallel, or FSDP2's ``fully_shard``.

With DDP every rank has all weights, and gradients are averaged as the backward pass makes them.
With FSDP weights, gradients and optimiser are cut along their first dimension, a piece on each
rank, and gathered where they are used.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from runners.config import TrainConfig
from runners.distributed import World


def spread(model: Any, config: TrainConfig, world: World, *, has_one_shape: bool = False) -> Any:
    """Return what is called to run ``model`` on this rank, compiled if the config says so.

    Args:
        model: initialised alike on every rank, on the device. Under FSDP its parameters are
            replaced, so that an optimiser has to be made afterwards.
        config: the ``train`` section.
        world: this rank's place.
        has_one_shape: whether all batches have one shape, for which a compiled model can be
            faster than for any.
    """
    call = model
    if world.size > 1 and config.parallel == "ddp":
        call = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    if config.compile:
        call = torch.compile(call, dynamic=None if has_one_shape else True)
    return call


def gradients_sent(call: Any, is_last: bool) -> contextlib.AbstractContextManager[Any]:
    """Return the context of one accumulated part, whose gradients travel if it is the last."""
    module = getattr(call, "_orig_mod", call)
    if isinstance(module, DistributedDataParallel) and not is_last:
        return module.no_sync()
    return contextlib.nullcontext()
