"""The layers of GPT-2 and their last norm, which is in the loop of looped Transformers."""

from __future__ import annotations

from typing import Any

from restated.layers import Tensors, attend, gelu_tanh, heads, layer_norm
from torch import Tensor


def shapes_of(prefix: str, config: dict[str, Any], *, is_transposed: bool) -> dict[str, Any]:
    """Return the shape of each weight; matrices are input × output where ``is_transposed``."""
    width, shapes = config["d_model"], {}
    matrices = {
        "attn.c_attn": (3 * width, width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (4 * width, width),
        "mlp.c_proj": (width, 4 * width),
    }
    for layer in range(config["layers"]):
        for name, (rows, columns) in matrices.items():
            shape = (columns, rows) if is_transposed else (rows, columns)
            shapes[f"{prefix}.h.{layer}.{name}.weight"] = shape
            shapes[f"{prefix}.h.{layer}.{name}.bias"] = (rows,)
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{prefix}.h.{layer}.{norm}.{part}": (width,) for part in ("weight", "bias")}
    return shapes | {f"{prefix}.ln_f.{part}": (width,) for part in ("weight", "bias")}


def backbone(x: Tensor, p: Tensors, config: dict[str, Any], *, is_transposed: bool) -> Tensor:
    """Return what the layers and the last norm make of x (B, T, D)."""

    def linear(name: str, x: Tensor) -> Tensor:
        weight = p[f"{name}.weight"] if is_transposed else p[f"{name}.weight"].T
        return x @ weight + p[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"])

    for layer in (f"h.{number}" for number in range(config["layers"])):
        joint = linear(f"{layer}.attn.c_attn", norm(f"{layer}.ln_1", x))
        q, k, v = (heads(one, config["heads"]) for one in joint.chunk(3, dim=-1))
        x = x + linear(f"{layer}.attn.c_proj", attend(q, k, v, causal=True))
        hidden = gelu_tanh(linear(f"{layer}.mlp.c_fc", norm(f"{layer}.ln_2", x)))
        x = x + linear(f"{layer}.mlp.c_proj", hidden)
    return norm("ln_f", x)
