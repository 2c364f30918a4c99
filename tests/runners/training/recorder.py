"""A stand-in for CUDA graphs on the CPU, and a guard against reading tensors on the host.

``Recorder`` notes every operation that is dispatched while something is recorded, with the very
tensors that it read and wrote, and does them again: what the host computed in between stays as it
was, as in a CUDA graph. Operations in C++ that PyTorch does not dispatch are not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "item", "allclose"),
    # The number of elements of their results depends on values.
    *("nonzero", "masked_select", "unique_dim", "_unique2", "bincount", "repeat_interleave"),
    "lift_fresh",  # torch.tensor of a list: on a GPU, a copy from the host that waits
}
"""Operations of PyTorch that wait for a device."""


class NoHostReads(TorchDispatchMode):
    """Fail where the host reads what is on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        refuse_host_read(func)
        return func(*args, **(kwargs or {}))


def refuse_host_read(operation: Any) -> None:
    """Raise RuntimeError if an operation is one of ``HOST_READS``."""
    name = operation._schema.name.partition("::")[2]
    if name in HOST_READS:
        raise RuntimeError(f"the host reads a tensor: {name}")


class Recorder:
    """Records work as ``runners.training.graphs.Capture`` says."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.num_replayed = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        generator = torch.get_rng_state()
        calls = _Calls()
        with calls:
            result = work()
        calls.undo()
        torch.set_rng_state(generator)
        self.num_recorded += 1

        def replay() -> None:
            self.num_replayed += 1
            calls.repeat()

        return result, replay


class _Calls(TorchDispatchMode):
    """Operations in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self.own: set[int] = set()  # storages made here
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        refuse_host_read(func)
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(value):
                    if _storage(tensor) not in self.own:
                        self.before.append((tensor, tensor.detach().clone()))
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        made = _tensors(result)
        self.own |= {_storage(tensor) for tensor in made} - given
        self.calls.append((func, args, kwargs, made))
        return result

    def undo(self) -> None:
        """Restore what was there before, since recording does nothing."""
        for tensor, value in reversed(self.before):
            tensor.detach().copy_(value)
        self.before.clear()

    @torch.no_grad()
    def repeat(self) -> None:
        """Do the operations again, into the same tensors."""
        for func, args, kwargs, made in self.calls:
            for old, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                if _storage(old) != _storage(new):
                    old.copy_(new)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
