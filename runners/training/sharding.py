"""Weights and optimiser in pieces, one on each rank: FSDP2, and torch's distributed checkpoint.

Imported only where a run is sharded, since what it needs takes a second to import.
"""

from __future__ import annotations

import warnings
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

from runners.process.ranks import World
from runners.training.optimization import members, parameters_of


def shard(model: Any, world: World) -> None:
    """Cut the parameters of a model, those of each layer to be gathered when it runs.

    A stack that applies its layers many times stays in one piece: its weights are few, and
    gathering them, and scattering their gradients, at each application would cost more than it
    saves.
    """
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (world.size,))
    if model.config.form == "decoder_lm" and not model.config.depth.is_shared:
        for layer in model.decoder.layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def part_of(whole: torch.Tensor, *, like: Any) -> Any:
    """Return this rank's part of a whole tensor, cut as ``like`` is."""
    whole = whole.to(device=like.device, dtype=like.dtype)
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def save_shards(directory: Path, model: Any, optimizer: Any, world: World) -> None:
    """Write the optimiser's tensors, each rank its pieces; every rank has to call it.

    Raises:
        OSError: a rank could not write.
    """
    writer = FileSystemWriter(directory, overwrite=True)
    try:
        distributed_checkpoint.save(
            optimizer_tensors(model, optimizer), storage_writer=writer, process_group=world.control
        )
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        number = getattr(first, "errno", None)
        raise OSError(number or 5, str(first), str(directory)) from error


def optimizer_tensors(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Return the optimiser's tensors by the parameters' names, made here where there are none."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for each in members(optimizer).values():
        for parameter in parameters_of(each):
            state = each.state[parameter]
            if not state:
                state |= _new_state(each, parameter)
            for key, value in state.items():
                tensors[f"{names[parameter]}.{key}"] = value
    return tensors


def _new_state(optimizer: torch.optim.Optimizer, parameter: Any) -> dict[str, torch.Tensor]:
    """Return what an Adam, or a Muon, keeps of a parameter before its first update."""
    is_adam = isinstance(optimizer, torch.optim.Adam)
    shaped = ("exp_avg", "exp_avg_sq") if is_adam else ("momentum_buffer",)
    state = {key: torch.zeros_like(parameter, requires_grad=False) for key in shaped}
    if is_adam:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return state


class _TensorsOnly(DefaultLoadPlanner):
    """Loads no Python objects, which would be unpickled."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise ValueError(f"{read_item.dest_index.fqn}: not a tensor")


def load_shards(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Fill tensors, whole or in pieces, with what ``save_shards`` wrote on any number of ranks."""
    reader = FileSystemReader(directory)
    with warnings.catch_warnings():
        # Each rank reads for itself, on purpose: torch says that it takes it to be alone.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        distributed_checkpoint.load(
            tensors, storage_reader=reader, planner=_TensorsOnly(), no_dist=True
        )
