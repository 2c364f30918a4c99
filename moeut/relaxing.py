"""Begin a relaxed recursive model from one of distinct layers (arXiv 2410.20672).

What repeats share starts as the mean W of the layers that it stands for. An adapter starts as the
best low-rank change to what its layer was, by a singular value decomposition:

    scaling · B A ≈ original - W,   B = U S / scaling,  A = Vᵀ
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moeut.config import ModelConfig
from moeut.models import Model, build
from moeut.recurrence.schedule import Depth


@torch.no_grad()
def relax(
    model: Model, config: ModelConfig, *, adapters: Literal["scaled", "as_published"] = "scaled"
) -> Model:
    """Return a model of ``config`` that starts from ``model``, whose layers are all distinct.

    Layer i of each stack of ``model`` becomes application i of the stack of the same name.
    ``as_published`` leaves B = U S undivided, as raymin0223/mixture_of_recursions does, so that a
    layer starts at W + scaling · (original - W).

    Raises:
        ValueError: ``model`` repeats layers, or has not one for each application; or a parameter of
            the new model is neither there nor of one repeat.
    """
    originals = dict(model.state_dict())
    with torch.random.fork_rng(devices=[]):
        relaxed = build(config).to(next(model.parameters()).dtype)
    for name, parameter in relaxed.named_parameters():
        stack, _, rest = name.partition(".layers.")
        if not rest or stack not in config.stacks:
            start = originals.get(name)
        else:
            depth = config.stacks[stack].depth
            _check(model, stack, depth)
            start = _start(f"{stack}.layers", rest, depth, originals)
            if ".adapters." in rest:
                start = _adapter(f"{stack}.layers", rest, config, depth, originals, adapters)
        if start is not None:
            parameter.copy_(start)
        elif ".encoding." not in name and ".controllers." not in name:
            raise ValueError(f"{name}: no layer of the model has it")
    return relaxed


def _check(model: Model, stack: str, depth: Depth) -> None:
    """Raise ``ValueError`` unless there is a distinct layer for each application."""
    given = model.config.stacks[stack].depth
    if given.is_shared or given.num_distinct != depth.num_applications:
        raise ValueError(
            f"{stack}: expected a model of {depth.num_applications} distinct layers, got "
            f"depth.repeats={given.repeats} and {given.num_distinct}"
        )


def _applications(layer: int, repeat: int | None, depth: Depth) -> list[int]:
    """Return the applications of a layer, in one repeat or in all."""
    places = [place for place in depth.places() if place.layer == layer]
    return [p.application for p in places if repeat is None or p.repeat == repeat]


def _start(prefix: str, rest: str, depth: Depth, originals: dict[str, Tensor]) -> Tensor | None:
    """Return the mean of what a parameter stands for, or what it was if it is of one repeat."""
    layer, _, inner = rest.partition(".")
    repeat = None
    if f"{prefix}.0.{inner}" not in originals:  # a number in its name is that of its repeat
        words = inner.split(".")
        number = next((i for i, word in enumerate(words) if word.isdigit()), None)
        if number is None:
            return None
        repeat, inner = int(words[number]), ".".join(words[:number] + words[number + 1 :])
    names = [f"{prefix}.{a}.{inner}" for a in _applications(int(layer), repeat, depth)]
    found = [originals[name] for name in names if name in originals]
    return torch.stack(found).mean(dim=0) if found else None


def _adapter(
    prefix: str,
    rest: str,
    config: ModelConfig,
    depth: Depth,
    originals: dict[str, Tensor],
    adapters: Literal["scaled", "as_published"],
) -> Tensor:
    """Return A or B of ``LAYER.BLOCK.adapters.PROJECTION.HALF.REPEAT``."""
    layer, block, _, projection, half, repeat = rest.split(".")
    own = config.own.adapters
    every = [
        originals[f"{prefix}.{a}.{block}.{projection}.weight"].flatten(1)
        for a in _applications(int(layer), None, depth)
    ]
    change = every[int(repeat)] - torch.stack(every).mean(dim=0)
    exact = torch.float64 if change.dtype == torch.float64 else torch.float32
    left, sizes, right = torch.linalg.svd(change.to(exact), full_matrices=False)
    rank = min(own.rank, len(sizes))
    if half == "down":
        return right[:rank]
    scale = own.factor(rank) if adapters == "scaled" else 1.0
    return left[:, :rank] * sizes[:rank] / scale
