"""The memory that a step of training holds between its forward and its backward pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from runners.training.batches import Batch
from runners.training.criterion import Where
from runners.training.experiment import Built, build_model
from runners.training.lengths import mean_lengths, train_columns
from runners.training.loop import build_criterion
from runners.training.operations import macs_per_token, mean_depth
from runners.training.parallel import autocast

MOST_MACS = 3e10
"""Multiply-accumulates of a forward pass that is measured, about a second of one core: of a larger
batch fewer rows are, and of rows that are larger than a third of it there is no number."""

CPU = torch.device("cpu")


class Held(TorchDispatchMode):
    """Knows the storages that operations have made since it was entered and that are still held.

    A storage counts once, with all its bytes, however many tensors are views of it.

    Args:
        others: tensors that were there before, which do not count, nor do views of them.
    """

    def __init__(self, others: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._others = WeakIdKeyDictionary({t.untyped_storage(): True for t in others})
        self._sizes = WeakIdKeyDictionary()  # loses a storage when it is freed

    @property
    def bytes(self) -> int:
        """Bytes that are held now."""
        return sum(self._sizes.values())

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, a second of every process, to keep it out."""
        return False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do the operation, and note what it has made."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self._others:
                    self._sizes[storage] = storage.nbytes()
        return result


def activation_bytes(built: Built) -> int | None:
    """Return the bytes that are held of an update when its forward pass is done.

    That is everything autograd keeps for the backward pass, and the loss: not weights, gradients,
    moments of the optimiser and the batch, nor what operations use for themselves and free. It is
    measured on a CPU, with its operations, in the precision of training, of a model that is freshly
    initialised (where tokens halt by what they are, they take part as they do there), at the mean
    depth of training, for the first batch: one of its parts where gradients are accumulated, all
    of it where ranks would share it. Of a batch that is too large to be measured, two numbers of
    its rows, the longest among them, are, and the rest follows, since all but a constant is in
    proportion to rows.

    None: there are no data yet, or two rows already are too large.
    """
    if built.missing:
        return None
    train, objective = built.config.train, built.objective
    columns = train_columns(objective)
    rows = columns.order(
        batch_size=train.batch_size, tokens_per_batch=train.tokens_per_batch, seed=0
    ).rows(0)
    rows = rows[-math.ceil(len(rows) / train.accumulate) :]
    per_row = macs_per_token(built.model_config, objective) * sum(mean_lengths(objective))
    most = int(MOST_MACS / per_row)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(built.model_config, CPU)
        if train.activation_checkpointing:
            model.activation_checkpointing = True  # type: ignore[assignment]

        def measured(number: int) -> int:
            chosen = np.linspace(0, len(rows) - 1, number).round().astype(int)
            return _of_batch(built, model, columns.batch(rows[chosen], device=CPU))

        if len(rows) <= most:
            return measured(len(rows))
        few = most // 3
        if few < 1:
            return None
        one, two = measured(few), measured(2 * few)
        return round(one + (two - one) / few * (len(rows) - few))


def _of_batch(built: Built, model: torch.nn.Module, batch: Batch) -> int:
    train, objective = built.config.train, built.objective
    criterion = build_criterion(train, built.model_config, seed=0)
    depth = mean_depth(train, objective)
    call = {
        "num_repeats": None if depth is None else max(1, round(depth[0])),
        "backprop_repeats": train.backprop_repeats,
    }
    given = {name: number for name, number in call.items() if number is not None}
    where = Where(0, np.arange(len(batch.rows)), True)
    held = Held([*model.parameters(), *model.buffers(), *batch.tensors.values()])
    model.train()
    with held, autocast(CPU, train.precision):
        loss = criterion.loss(objective, functools.partial(model, **given), batch, where)
        found = held.bytes
        del loss  # until here it holds what the backward pass would read
    return found
