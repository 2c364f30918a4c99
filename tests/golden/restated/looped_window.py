"""A looped GPT-2 that regresses in context, its loss over a window of last loops."""

from __future__ import annotations

from typing import Any

import torch
from restated.gpt2 import backbone, shapes_of
from restated.layers import Tensors, draws, gradients, leaves, normal, part, weights

GIVEN = ("param.*", "xs", "ys")
"""Tensors of a file that are not compared: inputs."""


def _config(loop_func: str, **changes: Any) -> dict[str, Any]:
    return {
        "family": "looped_window",
        "d_model": 12,
        "heads": 3,
        "layers": 1,
        "loop_func": loop_func,
        "n_loops": 4,
        "window": 2,
        "precision": "float64",
    } | changes


VARIANTS = {
    "multiply": _config("z=f(x*z)"),
    "multiply_two_layers": _config("z=f(x*z)", layers=2, n_loops=3, window=3, heads=2),
    "add_two_layers": _config("z=f(x+z)", layers=2, n_loops=6, window=1, heads=1),
}


def inputs(config: dict[str, Any]) -> Tensors:
    """Return weights, xs (B, N, d) and ys (B, N)."""
    g, width, size = draws(config), config["d_model"], 2
    prefix = "_backbone.transformer"
    shapes: dict[str, tuple[int, ...]] = {
        "_read_in.weight": (width, size),
        "_read_in.bias": (width,),
        f"{prefix}.wpe.weight": (13, width),
        "_read_out.weight": (1, width),
        "_read_out.bias": (1,),
    }
    shapes |= shapes_of(prefix, config, is_transposed=False)
    given = {f"param.{n}": t for n, t in weights(g, shapes).items()}
    return given | {"xs": normal(g, 2, 5, size), "ys": normal(g, 2, 5)}


def numbers(config: dict[str, Any], given: Tensors) -> Tensors:
    """Return predictions and states of every loop, the loss, and its two gradients."""
    numbers: Tensors = {}
    for prefix, through in (("grad", config["window"]), ("grad_full", config["n_loops"])):
        p, xs, ys = leaves(part(given, "param")), given["xs"], given["ys"]
        padded = torch.cat((ys.unsqueeze(-1), torch.zeros_like(xs[..., 1:])), dim=-1)
        rows = torch.stack((xs, padded), dim=2).flatten(1, 2)
        e = rows @ p["_read_in.weight"].T + p["_read_in.bias"]
        positions = p["_backbone.transformer.wpe.weight"][: e.shape[1]]
        multiplies = config["loop_func"] == "z=f(x*z)"
        z, predictions = torch.ones_like(e) if multiplies else torch.zeros_like(e), []
        for loop in range(config["n_loops"]):
            with torch.set_grad_enabled(loop >= config["n_loops"] - through):
                entered = (z * e if multiplies else z + e) + positions
                inside = part(p, "_backbone.transformer")
                z = backbone(entered, inside, config, is_transposed=False)
                read = z @ p["_read_out.weight"].T + p["_read_out.bias"]
            predictions.append(read[:, ::2, 0])
            numbers[f"state.{loop + 1}"] = z.detach()
        every = torch.stack(predictions)
        loss = (every[-config["window"] :] - ys).square().mean()
        numbers |= gradients(loss, p, prefix=prefix)
        numbers |= {"predictions_all": every.detach(), "loss": loss.detach()}
        numbers["predictions"] = every[-config["window"] :].detach()
    return numbers


def metadata(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return the metadata of a file with these tensors."""
    return config
