"""Looped GPT-2 without positions, read at the step that each row's length asks for."""

from __future__ import annotations

from typing import Any

import torch
from restated.gpt2 import backbone, shapes_of
from restated.layers import Tensors, cross_entropies, draws, gradients, leaves, part, weights

GIVEN = ("param.*", "tokens", "targets", "mask", "steps")
"""Tensors of a file that are not compared: inputs."""


def _config(task: str, **changes: Any) -> dict[str, Any]:
    return {
        "family": "looped_length",
        "d_model": 12,
        "heads": 2,
        "layers": 1,
        "horizon": 6,
        "injection": True,
        "max_digits": 3,
        "read_in": "linear on one-hot",
        "task": task,
        "vocab": 7,
        "params_without_gradient": [],
        "precision": "float64",
    } | changes


VARIANTS = {
    "no_injection": _config("copy", injection=False, heads=3, layers=2),
    "dict_embedding": _config("dict", read_in="embedding", vocab=9, max_digits=2, horizon=5),
    "embedding_no_injection": _config("sum_reverse", read_in="embedding", injection=False),
    "multiplication": _config("multi", horizon=8, max_digits=3, heads=1),
}


def inputs(config: dict[str, Any]) -> Tensors:
    """Return weights, tokens (B, T), what is to be said of them, and the step of each row."""
    g, width, vocabulary = draws(config), config["d_model"], config["vocab"]
    shapes: dict[str, tuple[int, ...]] = {"_read_in.weight": (vocabulary, width)}
    if config["read_in"] != "embedding":
        shapes |= {"_read_in.weight": (width, vocabulary), "_read_in.bias": (width,)}
    shapes |= shapes_of("_backbone", config, is_transposed=True)
    shapes |= {"_read_out.weight": (vocabulary, width), "_read_out.bias": (vocabulary,)}
    given = {f"param.{n}": t for n, t in weights(g, shapes).items()}
    batch, length = 4, 9
    most = config["max_digits"] ** 2 if config["task"] == "multi" else config["max_digits"]
    given["tokens"], given["targets"] = (
        torch.randint(vocabulary, (batch, length), generator=g) for _ in range(2)
    )
    given["steps"] = torch.randint(1, min(most, config["horizon"]) + 1, (batch,), generator=g)
    first = torch.randint(3, 7, (batch, 1), generator=g)
    given["mask"] = (torch.arange(length) >= first).long()
    return given


def numbers(config: dict[str, Any], given: Tensors) -> Tensors:
    """Return states and logits of every loop, the loss, and the choice of a step."""
    parameters, tokens = leaves(part(given, "param")), given["tokens"]
    read_in, bias = parameters["_read_in.weight"], parameters.get("_read_in.bias")
    e = read_in[tokens] if bias is None else read_in.T[tokens] + bias
    z = torch.zeros_like(e) if config["injection"] else e
    out, logits, counted = {}, [], given["mask"] == 1
    for step in range(1, config["horizon"] + 1):
        z = z + e if config["injection"] else z
        z = backbone(z, part(parameters, "_backbone"), config, is_transposed=True)
        out[f"state.{step}"] = z
        logits.append(z @ parameters["_read_out.weight"].T + parameters["_read_out.bias"])
    every = torch.stack(logits)  # (S, B, T, V)
    chosen = every[given["steps"] - 1, torch.arange(len(tokens))]
    loss = cross_entropies(chosen, given["targets"])[counted].mean()
    doubts = torch.stack([cross_entropies(one, one.argmax(-1))[counted].mean() for one in every])
    out |= {"step_logits": every, "logits": chosen, "loss": loss, "confidence": doubts}
    out["confidence.step"] = doubts.argmin() + 1
    found = gradients(loss, parameters, prefix="grad")
    return {name: tensor.detach() for name, tensor in out.items()} | found


def metadata(config: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Return the metadata of a file with these tensors."""
    return config
