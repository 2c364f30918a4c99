"""A model spread over ranks: DistributedDataParallel, or FSDP2's ``fully_shard``.

With DDP every rank has all weights, and gradients are averaged as the backward pass makes them.
With FSDP weights, gradients and optimiser are cut along their first dimension, a piece on each
rank, and gathered where they are used. Weights are saved in one piece all the same
(``model.safetensors``), the optimiser's tensors in pieces by torch's distributed checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from moeut.models import FORMS
from moeut.routing import RouterRecord, RoutingRecord
from runners.config import TrainConfig
from runners.distributed import World

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter, in its shape, besides the number of its updates."""


def is_sharded(model: Any) -> bool:
    """Tell whether each rank holds only a part of the model's weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


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
    if world.size > 1 and config.parallel == "fsdp":
        _shard(model, world)
    elif world.size > 1:
        call = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    if config.compile:
        call = torch.compile(call, dynamic=None if has_one_shape else True)
    return call


def _shard(model: Any, world: World) -> None:
    """Cut the parameters of a model, those of each layer to be gathered when it runs.

    A stack that applies its layers many times stays in one piece: its weights are few, and
    gathering them, and scattering their gradients, at each application would cost more than it
    saves.
    """
    for record in (RoutingRecord, RouterRecord):  # so that FSDP sees the tensors in them
        if record not in torch.utils._pytree.SUPPORTED_NODES:
            torch.utils._pytree.register_dataclass(record)
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (world.size,))
    if model.config.form == "decoder_lm" and not model.config.decoder.is_shared:
        for layer in model.decoder.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextlib.contextmanager
def gradients_sent(call: Any, is_last: bool) -> Iterator[None]:
    """Accumulate a part's gradients here, and send them between the ranks with the last part's."""
    module = getattr(call, "_orig_mod", call)
    if isinstance(module, DistributedDataParallel) and not is_last:
        with module.no_sync():
            yield
    else:
        if hasattr(module, "set_requires_gradient_sync"):
            module.set_requires_gradient_sync(is_last)
        yield


# --- weights ----------------------------------------------------------------------------


def full_weights(model: Any, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """Return copies of the whole weights on the CPU; every rank has to call it.

    ``keep`` is false on ranks that have no use for them: they only take part.
    """
    weights = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            weights[name] = whole.detach().to("cpu", copy=True)
    return weights


def load_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give a model whole weights, of which each rank keeps its part."""
    if not is_sharded(model):
        model.load_state_dict(weights)
        return
    own = model.state_dict()
    if own.keys() != weights.keys():
        raise ValueError(f"weights {sorted(own.keys() ^ weights.keys())[:3]}: not in both")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(_part(weights[name], like=value))


def whole_copy(model: Any, device: torch.device, *, keep: bool) -> Any:
    """Return a copy of a sharded model in one piece where ``keep``; every rank has to call it."""
    weights = full_weights(model, keep=keep)
    if not keep:
        return None
    with torch.device("meta"):  # draws no random numbers
        copy = FORMS[model.config.form](model.config)
    copy.load_state_dict(weights, assign=True)
    return copy.to(device)


def _part(whole: torch.Tensor, *, like: Any) -> Any:
    whole = whole.to(device=like.device, dtype=like.dtype)
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


# --- optimiser --------------------------------------------------------------------------


def optimizer_state(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimiser's state, without what lies in pieces and is saved by itself."""
    state = optimizer.state_dict()
    return state | {"state": {}} if is_sharded(model) else state


def load_optimizer_state(
    model: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any], shards: Path
) -> None:
    """Take up what ``optimizer_state`` gave, and the pieces in ``shards`` if there are any.

    Whole or in pieces, by however many ranks it was saved: each takes what it needs.
    """
    if shards.is_dir():
        optimizer.load_state_dict(state)
        _load_shards(shards, _tensors(model, optimizer))
    elif is_sharded(model):
        optimizer.load_state_dict(state | {"state": {}})
        tensors = _tensors(model, optimizer)
        for index, (name, _) in enumerate(model.named_parameters()):
            for key, value in state["state"].get(index, {}).items():
                own = tensors[f"{name}.{key}"]
                own.copy_(_part(value, like=own))
    else:
        optimizer.load_state_dict(state)


def save_shards(
    directory: Path, model: Any, optimizer: torch.optim.Optimizer, world: World
) -> None:
    """Write the optimiser's tensors, each rank its pieces; every rank has to call it.

    Raises:
        OSError: a rank could not write.
    """
    writer = FileSystemWriter(directory, overwrite=True)
    try:
        distributed_checkpoint.save(
            _tensors(model, optimizer), storage_writer=writer, process_group=world.control
        )
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        number = getattr(first, "errno", None)
        raise OSError(number or 5, str(first), str(directory)) from error


def _tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's tensors by the parameters' names, made here where there are none."""
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for key in MOMENTS:
                state[key] = torch.zeros_like(parameter, requires_grad=False)
        for key, value in state.items():
            tensors[f"{name}.{key}"] = value
    return tensors


class _TensorsOnly(DefaultLoadPlanner):
    """Loads no Python objects, which would be unpickled."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise ValueError(f"{read_item.dest_index.fqn}: not a tensor")


def _load_shards(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    distributed_checkpoint.load(
        tensors, storage_reader=FileSystemReader(directory), planner=_TensorsOnly(), no_dist=True
    )
